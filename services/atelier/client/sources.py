"""What people call a model, a LoRA or a folder of pictures, as an artifact of the server.

A word may be a path on this machine (uploaded, unless it is there already), the name or tag of an artifact, or a Hugging Face repository
(taken from this machine's cache, else from the server's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from atelier.artifacts.importing import REPOSITORY, cached_repository, hub_facts
from atelier.artifacts.manifest import DIGEST, Kind
from atelier.client.client import Client
from atelier.errors import AtelierError, Status, invalid_field
from atelier.v1 import artifact_pb2

BASE = "base"
"""The model on board; a folder of that name is meant by `./base`."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Turns words into artifacts. `hub` is this machine's Hugging Face cache (the folder that holds `models--...`)."""

    client: Client
    hub: Path
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
    """Given what is going on, gives what is told bytes done and bytes in all while it lasts."""

    def find(
        self, word: str, *, field: str, kind: Kind | None = None, revision: str = "", allow_download: bool = False
    ) -> artifact_pb2.Artifact:
        """The artifact behind a word. Raises INVALID_ARGUMENT, naming `field`, when there is none."""
        path = Path(word).expanduser()
        if word == BASE or word.startswith("artifacts/") or DIGEST.fullmatch(word):
            return self.client.artifacts.get(word)
        if path.exists():
            return self.upload(path, kind=kind)
        if REPOSITORY.fullmatch(word):
            return self._repository(word, field=field, revision=revision, allow_download=allow_download)
        known = self.known(word)
        if known is None:
            what = "no file or folder" if "/" in word else "neither a file or folder nor an artifact"
            raise invalid_field(field, f"there is {what} {word!r}", reason="SOURCE_NOT_FOUND")
        return known

    def known(self, word: str) -> artifact_pb2.Artifact | None:
        """The artifact of that name or tag, if there is one."""
        try:
            return self.client.artifacts.get(word)
        except AtelierError as error:
            if error.status not in (Status.NOT_FOUND, Status.INVALID_ARGUMENT):
                raise
            return None

    def upload(self, path: Path, *, kind: Kind | None = None, metadata: Mapping[str, str] | None = None) -> artifact_pb2.Artifact:
        """Brings in a path of this machine."""
        with self.progress(f"uploading {path.name or path}") as told:
            return self.client.artifacts.upload(path, kind=kind, metadata=metadata, progress=told)

    def _repository(self, word: str, *, field: str, revision: str, allow_download: bool) -> artifact_pb2.Artifact:
        folder = cached_repository(self.hub, word, revision)
        if folder is not None:
            return self.upload(folder, metadata=hub_facts(word, folder))
        try:
            return self.client.artifacts.import_(word, revision=revision, allow_download=allow_download)
        except AtelierError as error:
            if error.reason != "NOT_IN_HUB_CACHE":
                raise
            sentence = f"{word!r} is no folder here, nor in a Hugging Face cache here or on the server"
            hint = error.message.rpartition("; ")[2] if allow_download else f"`atelier artifacts import {word} --allow-download` fetches it"
            raise invalid_field(field, f"{sentence}; {hint}", reason=error.reason) from error
