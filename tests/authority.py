"""The product's authority of certificates, with files, as tests want it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atelier import certificates


@dataclass(frozen=True)
class Pair:
    """Two files in PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; everything lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = certificates.Authority.new("authority")
        self.file = folder / "ca.crt"
        self.file.write_bytes(self._authority.pair.certificate)

    def sign(self, name: str, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Pair:
        """A new pair, in place of one of this name."""
        issued = self._authority.issue(name, hosts)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.certificate.write_bytes(issued.certificate)
        pair.key.write_bytes(issued.key)
        return pair
