"""What an operator can set, read from the environment (`ATELIER_...`) by `app.py` alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from atelier.errors import Violation, invalid, invalid_field

SERVICES = ("trainer", "converter", "compiler", "server")


def default_data() -> Path:
    """Where an installation keeps its data when nobody says otherwise."""
    return Path.home() / ".local" / "share" / "atelier"


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{value!r} is no host:port, as in 127.0.0.1:7878")
    return value


ListenAddress = Annotated[str, AfterValidator(_address)]
"""`host:port`; gRPC itself would take the rest of a port that is too large."""


class Settings(BaseSettings):
    """One control process: which services it runs is said on the command line."""

    model_config = SettingsConfigDict(env_prefix="ATELIER_", extra="ignore")

    data: Path = Field(default_factory=default_data)
    """Folder of the installation: keys, logs, and, unless said otherwise, ledger and store."""
    ledger: str = ""
    """Database: empty for SQLite in `data`, else `postgresql://user:password@host/name`."""
    store: str = ""
    """Artifact store: empty for a directory in `data`, else `file:///...`, `s3://bucket/prefix?endpoint=...&region=...` or `memory://`."""
    listen: ListenAddress = "127.0.0.1:7878"
    """Address that clients call; port 0 draws one."""
    internal_listen: ListenAddress = "127.0.0.1:0"
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


def read(**given: Any) -> Settings:
    """The settings, `given` before the environment's. Raises INVALID_ARGUMENT naming every variable that cannot be used."""
    try:
        return Settings(**given)
    except ValidationError as error:
        found = [(str(each["loc"][0]) if each["loc"] else "", each["msg"].removeprefix("Value error, ")) for each in error.errors()]
        raise invalid([Violation(f"ATELIER_{name.upper()}", message) for name, message in found]) from error
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        raise invalid_field(f"ATELIER_{name[1].upper() if name else ''}", 'is no JSON; give it as in ["/models"]') from error
