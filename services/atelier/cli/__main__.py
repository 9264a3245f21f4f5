"""The `atelier` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.cli import INTERRUPTED
from atelier.errors import failed_precondition

if TYPE_CHECKING:
    from atelier.client.address import Address


TLS_FILES = {"ca": "ATELIER_CA_FILE", "certificate": "ATELIER_CERT_FILE", "key": "ATELIER_KEY_FILE"}
"""What a server is trusted by, and what it is shown, where no flag says so."""


class OnDemand:
    """`atelier.app`, imported when it is needed: most command lines talk to a server that runs already."""

    def running(self, data: Path) -> Address | None:
        """See Installation."""
        from atelier import app

        return app.running(data)

    def inside(self, data: Path, *, serving: bool) -> AbstractContextManager[Address]:
        """See Installation."""
        require("torch", *(["ray"] if serving else []))
        from atelier import app

        return app.inside(data, serving=serving)

    def up(self, data: Path, *, listen: str, insecure: bool, on_ready: Callable[[Address], None]) -> None:
        """See Installation."""
        require("torch", "ray")
        from atelier import app

        app.up(data, listen=listen, insecure=insecure, on_ready=on_ready)

    def serve(self, service: str) -> None:
        """See Installation."""
        from atelier import app

        app.serve(service)

    def migrate(self) -> str:
        """See Installation."""
        from atelier import app

        return app.migrate()


def require(*modules: str) -> None:
    """Raises FAILED_PRECONDITION where the services cannot run because this is the client and the command line alone."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        sentence = f"the services need {names}, not installed here: `pip install 'atelier[all]'`, or name a running Atelier by --server"
        raise failed_precondition("EXTRA_MISSING", sentence, extra="all")


def main() -> None:
    """Runs the command line."""
    try:
        code = _run()
    except KeyboardInterrupt:  # while this was still importing
        code = INTERRUPTED
    if code == INTERRUPTED:
        # After a second Ctrl-C the services inside this process may still be stopping; workers end with this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    """Reads the environment."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines would stand among ours; read once, when grpc is imported
    from atelier.cli.command import run
    from atelier.cli.session import Session
    from atelier.client.client import Client
    from atelier.rpc.tls import Tls
    from atelier.settings import default_data

    environment = os.environ
    cache = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    token_file = environment.get("ATELIER_TOKEN_FILE")
    files = {name: Path(value) for name, variable in TLS_FILES.items() if (value := environment.get(variable))}
    session = Session(
        tls=Tls(**files) if files else None,
        installation=OnDemand(),
        connect=lambda address: Client(address.target, address.token, tls=address.tls),
        data=Path(environment.get("ATELIER_DATA") or default_data()),
        hub=Path(environment.get("HF_HUB_CACHE") or cache / "hub"),
        server=environment.get("ATELIER_SERVER", ""),
        token=environment.get("ATELIER_TOKEN", ""),
        token_file=Path(token_file) if token_file else None,
    )
    return run(sys.argv[1:], session)


if __name__ == "__main__":
    main()
