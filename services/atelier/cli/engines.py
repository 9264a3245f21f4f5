"""`atelier engines`: which engines the deployments need."""

from __future__ import annotations

import typer
from google.protobuf import json_format

from atelier import __version__
from atelier.cli.deploy import cell, table_of
from atelier.cli.pools import DIGITS, short
from atelier.cli.session import session_of
from atelier.engines.fingerprint import Fingerprint
from atelier.engines.versions import VERSIONS, changes
from atelier.v1 import server_pb2

app = typer.Typer(help="Which engines the deployments need.", no_args_is_help=True)

WORDS = {
    server_pb2.ENGINE_STATE_THERE: "there",
    server_pb2.ENGINE_STATE_BEING_BUILT: "being built",
    server_pb2.ENGINE_STATE_TO_BE_BUILT: "to be built",
    server_pb2.ENGINE_STATE_NOT_WANTED: "not wanted",
}


@app.callback()
def _group() -> None:
    """Keeps `plan` a command of its own, as long as there is no other."""


@app.command("plan")
def plan(context: typer.Context) -> None:
    """Engines that are there, being built, or to be built, and those that the images of this version would have built anew."""
    session = session_of(context)
    with session.client() as client:
        found = client.deployments.plan_engines()
    if session.json:
        engines = [json_format.MessageToDict(one, preserving_proto_field_name=True) | {"rebuilt_for": _changes(one)} for one in found]
        session.show({"engines": engines, "version": __version__, "versions": dict(VERSIONS)})
        return
    table = table_of("POOL", "NODES", "GRAPH", "DEPLOYMENTS", "ENGINE", f"WITH {__version__}", "MESSAGE")
    for one in found:
        deployments = cell(session, [name.partition("/")[2] for name in one.deployments])
        pool, graph = one.pool.partition("/")[2], one.graph[:DIGITS]
        table.add_row(pool, kind_of(one), graph, deployments, engine_of(one), after_of(one), one.message)
    session.show_table(table)


def kind_of(one: server_pb2.PlannedEngine) -> str:
    """The kind of nodes, as people say it."""
    if not one.HasField("fingerprint"):
        return "none was there yet"
    words = [one.fingerprint.product, f"torch {one.fingerprint.torch}"]
    words += [f"driver {one.fingerprint.driver}"] if one.fingerprint.driver else []
    return f"{', '.join(words)}{'' if one.present else ' (at last)'}"


def engine_of(one: server_pb2.PlannedEngine) -> str:
    """Where the engine stands, as people say it."""
    details = [*short([one.engine] if one.engine else []), *([one.job] if one.job else [])]
    return " ".join([WORDS.get(one.state, "unknown"), *details])


def after_of(one: server_pb2.PlannedEngine) -> str:
    """What becomes of an engine under the images of this version; empty where there is none."""
    if one.state not in (server_pb2.ENGINE_STATE_THERE, server_pb2.ENGINE_STATE_BEING_BUILT) or not one.HasField("fingerprint"):
        return ""
    found = _changes(one)
    return f"built anew: {', '.join(f'{name} {now} -> {then}' for name, (now, then) in found.items())}" if found else "stays"


def _changes(one: server_pb2.PlannedEngine) -> dict[str, tuple[str, str]]:
    if not one.HasField("fingerprint"):
        return {}
    kind = one.fingerprint
    return changes(
        Fingerprint(
            device=kind.device, product=kind.product, capability=kind.capability, driver=kind.driver, torch=kind.torch,
            backends=dict(kind.backends),
        )
    )  # fmt: skip
