"""Where uploads grow until they are whole."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from atelier.artifacts.manifest import File
from atelier.errors import AtelierError, Status


class Spool:
    """A folder where uploads grow until they are whole, so that one that was cut off goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the file with this digest grows."""
        return self._folder / sha256

    def size(self, sha256: str) -> int:
        """Bytes that are there."""
        path = self.path(sha256)
        return path.stat().st_size if path.exists() else 0

    def write(self, file: File, offset: int, data: bytes) -> None:
        """Appends a piece; it must begin where the file ends, and must not make it larger than announced."""
        size = self.size(file.sha256)
        if offset != size or size + len(data) > file.size:
            raise _out_of_range(file, offset, size)
        with self.path(file.sha256).open("ab") as stream:
            stream.write(data)

    def drop(self, sha256: str) -> None:
        """Forgets a file."""
        self.path(sha256).unlink(missing_ok=True)

    def sweep(self, *, older_than: timedelta) -> int:
        """Forgets files that nothing was written to for so long, whatever goes on meanwhile; gives how many."""
        limit = time.time() - older_than.total_seconds()
        gone = [path for path in self._folder.iterdir() if path.is_file() and path.stat().st_mtime < limit]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)


def _out_of_range(file: File, offset: int, size: int) -> AtelierError:
    sentence = (
        f"{file.path}: a piece at {offset} does not follow the {size} of {file.size} bytes that are there; ask QueryUpload where to go on"
    )
    return AtelierError(Status.OUT_OF_RANGE, "UPLOAD_OFFSET", sentence, metadata={"committed_bytes": str(size)})
