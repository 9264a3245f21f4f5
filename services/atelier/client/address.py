"""Where an installation is reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """`target` is `host:port`, with `https://` in front where the connection is encrypted; `token` is empty where none is asked for."""

    target: str
    token: str = ""
