"""What a replica is told when it starts: a file of the installation, which names the files with secrets and holds none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """How a replica reaches its installation, and what it may take."""

    pool: str
    """Name of the pool, without `pools/`."""
    gpu: str
    """The product in the pool's label, `cpu` or like `NVIDIA-A10`: on another one a replica does not start."""
    internal_target: str
    """`host:port` that answers Replicas and Artifacts for the internal token."""
    internal_token_file: str
    """File with that token."""
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
        """Writes the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> ReplicaSettings:
        """Reads what `write` wrote."""
        return cls(**json.loads(path.read_text()))
