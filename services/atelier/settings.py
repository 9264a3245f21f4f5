"""What an operator can set, read from the environment (`ATELIER_...`) by `app.py` alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SERVICES = ("trainer", "converter", "compiler", "server")


def default_data() -> Path:
    """Where an installation keeps its data when nobody says otherwise."""
    return Path.home() / ".local" / "share" / "atelier"


class Settings(BaseSettings):
    """One control process: which services it runs is said on the command line."""

    model_config = SettingsConfigDict(env_prefix="ATELIER_", extra="ignore")

    data: Path = Field(default_factory=default_data)
    """Folder of the installation: keys, logs, and, unless said otherwise, ledger and store."""
    ledger: str = ""
    """Database: empty for SQLite in `data`, else SQLAlchemy's URL."""
    store: str = ""
    """Artifact store: empty for a directory in `data`, else `file:///...` or `memory://`."""
    listen: str = "127.0.0.1:7878"
    """Address that clients call; port 0 draws one."""
    internal_listen: str = "127.0.0.1:0"
    """Address that workers and replicas call."""
    trainer: str = ""
    """Public address of the trainer, for a `server` that does not run it itself."""
    converter: str = ""
    """Public address of the converter, likewise."""
    compiler: str = ""
    """Public address of the compiler, likewise."""
    import_roots: list[Path] = Field(default_factory=list)
    """Folders that `Artifacts.Import` may read; as JSON: `["/models"]`."""
    allow_download: bool = False
    """Lets `Import` download from the Hugging Face Hub where the request asks for it too."""
    max_workers: int = 1
    """Jobs that run at once on this machine."""
    worker_threads: int = 0
    """Threads of each worker; 0: all cores."""
    replica_threads: int = 0
    """Threads of a replica; 0: all cores."""
    serve_port: int = 0
    """Port of Ray Serve's gRPC proxy, which only the gateway calls; 0 draws one."""
    serving: bool = True
    """Starts Ray with the `server`; without it there are no pictures, only jobs."""

    @property
    def ledger_url(self) -> str:
        """The ledger's URL, with the default filled in."""
        return self.ledger or f"sqlite:///{self.data.absolute() / 'ledger.db'}"

    @property
    def store_url(self) -> str:
        """The store's URL, with the default filled in."""
        return self.store or f"file://{self.data.absolute() / 'store'}"
