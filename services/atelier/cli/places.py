"""Where results go on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from atelier.errors import invalid_field


def check_writable(path: Path | None, *, field: str) -> None:
    """Raises INVALID_ARGUMENT, before any work begins, when a result could not be written to `path`, a file or a folder."""
    if path is None:
        return
    place = path.expanduser().absolute()
    there = next(one for one in (place, *place.parents) if one.exists())
    if there != place and not there.is_dir():
        raise invalid_field(field, f"{path} cannot be written: {there} is a file")
    if not os.access(there, os.W_OK):
        raise invalid_field(field, f"{path} cannot be written: {there} is not writable for this user")
