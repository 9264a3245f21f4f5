"""What a replica is told when it starts: a file of the installation, readable by its owner alone, because it holds a token."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """How a replica reaches its installation, and what it may take."""

    pool: str
    """Name of the pool, without `pools/`."""
    internal_target: str
    """`host:port` that answers Replicas and Artifacts for the internal token."""
    internal_token: str
    public_key: str
    """Path of the key that engines' signatures are checked with."""
    cache: str
    """Folder for models and engines."""
    log: str = ""
    """File for its log; empty: standard error."""
    store_url: str = ""
    """The store, where the replica can reach it by itself."""
    threads: int = 0
    """Threads; 0: all cores."""
    max_models: int = 8
    """Most models held at once; fewer where memory is short."""
    max_waiting: int = 64
    """Requests that may wait."""
    tls: Mapping[str, str] = field(default_factory=dict)
    """Files for an encrypted `internal_target`, see `Tls.as_environment`."""

    def write(self, path: Path) -> None:
        """Writes the file, mode 0600."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump(asdict(self), stream)

    @classmethod
    def read(cls, path: Path) -> ReplicaSettings:
        """Reads what `write` wrote."""
        return cls(**json.loads(path.read_text()))
