"""Where an installation is reached."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from atelier.rpc.tls import Tls


@dataclass(frozen=True)
class Address:
    """`target` is `host:port`, with `https://` or `http://` in front where that is to be said; `token` is empty where none is asked for."""

    target: str
    token: str = ""
    tls: Tls | None = None
    """Whom to trust, and what to show; None for the system's authorities."""

    @property
    def place(self) -> str:
        """`host:port`; an encrypted one without a port is at 443."""
        host = self.target.partition("://")[2] or self.target
        host = host.rstrip("/")
        return f"{host}:443" if self.encrypted and ":" not in host else host

    @property
    def encrypted(self) -> bool:
        """Whether the connection is: as the scheme says; without one, where an authority is named or the host is another machine."""
        scheme, found, _ = self.target.partition("://")
        if found:
            return scheme == "https"
        return self.tls is not None or not is_loopback(self.target.rpartition(":")[0] or self.target)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, reached by nobody else."""
    bare = host.strip("[]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False
