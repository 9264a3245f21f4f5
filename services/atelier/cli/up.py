"""`atelier up`, `serve`, `migrate` and `version`: the services themselves."""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from atelier.cli.session import session_of
from atelier.client.address import Address


class Service(StrEnum):
    """What can run as its own process."""

    TRAINER = "trainer"
    CONVERTER = "converter"
    COMPILER = "compiler"
    SERVER = "server"


def up(
    context: typer.Context,
    listen: Annotated[
        str, typer.Option("--listen", help="Address to answer on (ATELIER_LISTEN, 127.0.0.1:7878); port 0 draws one.", show_default=False)
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Other addresses than loopback may go without TLS.")] = False,
) -> None:
    """Runs everything on this machine until Ctrl-C: jobs, artifacts and pictures on one port, data under one folder (--data)."""
    session = session_of(context)

    def ready(address: Address) -> None:
        facts = {"target": address.target, "data": str(session.data)}
        session.show(facts, f"atelier answers at {address.target}, data in {session.data}; Ctrl-C stops it")

    session.installation.up(session.data, listen=listen, insecure=insecure, on_ready=ready)


def serve(
    context: typer.Context,
    service: Annotated[Service, typer.Argument(help="Which.")],
) -> None:
    """Runs one service as its own process; its settings are in the environment (ATELIER_...)."""
    session_of(context).installation.serve(service.value)


def migrate(context: typer.Context) -> None:
    """Brings the ledger (ATELIER_LEDGER, or the data folder's) to the tables of this version; services do so too when they start."""
    revision = session_of(context).installation.migrate()
    session_of(context).show({"revision": revision}, f"the ledger has revision {revision}")


def version(context: typer.Context) -> None:
    """The version."""
    number = version_of("atelier")
    session_of(context).show({"version": number}, f"atelier {number}")


def version_flag(context: typer.Context, asked: bool) -> None:
    """`--version` is `version`."""
    if asked:
        version(context)
        raise typer.Exit
