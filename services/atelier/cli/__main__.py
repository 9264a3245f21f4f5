"""The `atelier` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from atelier.client.address import Address


class OnDemand:
    """`atelier.app`, imported when it is needed: most command lines talk to a server that runs already."""

    def running(self, data: Path) -> Address | None:
        """See Installation."""
        from atelier import app

        return app.running(data)

    def inside(self, data: Path, *, serving: bool) -> AbstractContextManager[Address]:
        """See Installation."""
        from atelier import app

        return app.inside(data, serving=serving)

    def up(self, data: Path, *, listen: str, on_ready: Callable[[Address], None]) -> None:
        """See Installation."""
        from atelier import app

        app.up(data, listen=listen, on_ready=on_ready)

    def serve(self, service: str) -> None:
        """See Installation."""
        from atelier import app

        app.serve(service)


def main() -> None:
    """Reads the environment and runs the command line."""
    from atelier.cli.command import run
    from atelier.cli.following import INTERRUPTED
    from atelier.cli.session import Session, read_token
    from atelier.client.client import Client
    from atelier.settings import default_data

    environment = os.environ
    cache = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    token_file = environment.get("ATELIER_TOKEN_FILE")
    session = Session(
        installation=OnDemand(),
        connect=lambda address: Client(address.target, address.token),
        data=Path(environment.get("ATELIER_DATA") or default_data()),
        hub=Path(environment.get("HF_HUB_CACHE") or cache / "hub"),
        server=environment.get("ATELIER_SERVER", ""),
        token=read_token(Path(token_file)) if token_file else environment.get("ATELIER_TOKEN", ""),
    )
    code = run(sys.argv[1:], session)
    if code == INTERRUPTED:
        # After a second Ctrl-C the services inside this process may still be stopping; workers end with this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
