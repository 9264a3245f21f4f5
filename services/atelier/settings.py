"""What an operator can set, read from the environment (`ATELIER_...`) by `app.py` alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from atelier.client.address import is_loopback
from atelier.errors import Violation, invalid, invalid_field
from atelier.pools import Pool, read_pools
from atelier.rpc.tls import Tls

SERVICES = ("trainer", "converter", "compiler", "server")
LOCAL_POOL = "local"
"""The one pool of a machine that is no cluster."""


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

    model_config = SettingsConfigDict(env_prefix="ATELIER_", env_ignore_empty=True, extra="ignore")

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
    internal_host: str = ""
    """Name under which workers and replicas reach `internal_listen`; empty for this machine's own."""
    health_listen: ListenAddress | None = None
    """Address that answers `grpc.health.v1` alone, in the clear and without a token, for probes."""
    tls_cert: Path | None = None
    """Certificate (PEM, with its chain) of both ports; read anew for every connection."""
    tls_key: Path | None = None
    """Its key."""
    tls_ca: Path | None = None
    """Authority that signed it: what workers, replicas and services trust of each other; empty for the system's."""
    tls_client_ca: Path | None = None
    """Authority of clients' certificates, which are then asked for on both ports (mTLS); this installation shows its own."""
    token_file: Path | None = None
    """Clients' tokens, one a line, read again when it changes; empty for `keys/token` in `data`, made where it is missing."""
    internal_token_file: Path | None = None
    """Token of the installation's own parts; empty for `keys/internal-token` in `data`, made where it is missing."""
    signing_key_file: Path | None = None
    """Ed25519 key (PEM) that signs engines: for trainer and compiler alone; without both, `keys/` in `data`, made where it is missing."""
    public_key_file: Path | None = None
    """Its public key (PEM), for all; without `signing_key_file` this process signs nothing."""
    insecure: bool = False
    """Lets ports on other addresses than loopback go without TLS."""
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
    pools_file: Path | None = None
    """JSON list of the pools (see `Pool`); empty for the one pool of this machine, `local`."""
    launcher: Literal["local", "kubernetes"] = "local"
    """Where workers run: as processes of this machine, or as Kubernetes Jobs."""
    workers_dir: Path | None = None
    """For `kubernetes`: folder with a Job manifest a service, `trainer.json` and so on."""
    max_workers: int = 1
    """Jobs that run at once on this machine; on Kubernetes its scheduler decides."""
    worker_threads: int = 0
    """Threads of each worker; 0: all cores."""
    replica_threads: int = 0
    """Threads of a replica; 0: all cores."""
    serve_port: int = 0
    """Port of Ray Serve's gRPC proxy, which only the gateway calls; 0 draws one."""
    serving: bool = True
    """Starts Ray with the `server`; without it there are no pictures, only jobs."""
    ray_dashboard: str = ""
    """URL of the dashboard of a Ray that is there already, which is then used instead of one of this machine's own."""
    ray_token_file: Path | None = None
    """Its token."""
    serve_target: str = ""
    """gRPC target of its Serve proxies, such as `dns:///atelier-serve:9000`."""
    metrics_listen: ListenAddress | None = None
    """Address that answers Prometheus at `/metrics`, in the clear and without a token."""
    log_json: bool = False
    """Logs as JSON lines on standard error instead of a file in `data`."""
    grace_seconds: float = 10
    """After the drain, calls that run (pictures that are being made) get so long to end."""
    drain_seconds: float = 0
    """After SIGTERM health says NOT_SERVING, and calls are taken for so long still, until those who send them have heard of it."""

    @model_validator(mode="after")
    def _closed(self) -> Settings:
        """Refuses half of TLS, and what others could reach without it."""
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise ValueError("ATELIER_TLS_CERT and ATELIER_TLS_KEY go together")
        if self.tls_cert is None and (self.tls_ca or self.tls_client_ca):
            raise ValueError("ATELIER_TLS_CA and ATELIER_TLS_CLIENT_CA need ATELIER_TLS_CERT and ATELIER_TLS_KEY")
        if self.tls_cert is None and not self.insecure:
            for name in ("listen", "internal_listen"):
                host = getattr(self, name).rpartition(":")[0]
                if not is_loopback(host):
                    raise ValueError(
                        f"{getattr(self, name)} can be reached by others: set ATELIER_TLS_CERT and ATELIER_TLS_KEY, listen on 127.0.0.1, "
                        "or say --insecure (ATELIER_INSECURE=true) where the network itself is trusted"
                    )
        return self

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        """Refuses parts without the parts that they need."""
        if self.signing_key_file and not self.public_key_file:
            raise ValueError("ATELIER_SIGNING_KEY_FILE needs ATELIER_PUBLIC_KEY_FILE")
        if self.launcher == "kubernetes" and not (self.workers_dir and self.pools_file and self.public_key_file):
            raise ValueError("ATELIER_LAUNCHER=kubernetes needs ATELIER_WORKERS_DIR, ATELIER_POOLS_FILE and ATELIER_PUBLIC_KEY_FILE")
        if self.ray_dashboard and not (self.ray_token_file and self.serve_target and self.pools_file):
            raise ValueError("ATELIER_RAY_DASHBOARD needs ATELIER_RAY_TOKEN_FILE, ATELIER_SERVE_TARGET and ATELIER_POOLS_FILE")
        return self

    def pools(self, *, gpu: str) -> list[Pool]:
        """The pools; `gpu` is the product of this machine, for the one that is its own. Raises INVALID_ARGUMENT."""
        return read_pools(self.pools_file) if self.pools_file else [Pool(name=LOCAL_POOL, gpu="" if gpu == "cpu" else gpu)]

    @property
    def tls(self) -> Tls | None:
        """How both ports are encrypted; None where they are not."""
        if self.tls_cert is None:
            return None
        return Tls(certificate=self.tls_cert, key=self.tls_key, ca=self.tls_ca, client_ca=self.tls_client_ca)

    def reached(self, listen: str) -> str:
        """The host by which this machine itself reaches an address that it listens on: under TLS by a name that a certificate can have."""
        host = listen.rpartition(":")[0]
        if is_loopback(host) or host.strip("[]") in ("0.0.0.0", "::"):
            return "localhost" if self.tls else host if is_loopback(host) else "127.0.0.1"
        return host

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
        raise invalid([Violation(f"ATELIER_{name.upper()}" if name else "settings", message) for name, message in found]) from error
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        raise invalid_field(f"ATELIER_{name[1].upper() if name else ''}", 'is no JSON; give it as in ["/models"]') from error
