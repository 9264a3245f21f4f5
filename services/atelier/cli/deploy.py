"""`atelier deploy`, `undeploy` and `deployments`: what is served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table

from atelier.cli.session import Session, session_of
from atelier.client.client import Client
from atelier.errors import AtelierError, Status, invalid_field
from atelier.v1 import server_pb2


def deploy(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model: path, artifact or tag.")],
    name: Annotated[str, typer.Option("--name", help="Name of the deployment, in lower case letters, digits and dashes.")],
    pool: Annotated[str, typer.Option("--pool", help="Pool that serves it.")] = "",
    eager: Annotated[
        bool | None,
        typer.Option("--eager/--no-eager", help="Serves eager while there is no engine. Default: as the pool says, or as before."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Asks for an engine where there is none.")] = True,
    max_steps: Annotated[int, typer.Option("--max-steps", help="Most steps a request may ask for.", show_default=False)] = 0,
    max_count: Annotated[int, typer.Option("--max-count", help="Most pictures a request may ask for.", show_default=False)] = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Waits until it answers.")] = True,
) -> None:
    """Puts a model into service. A deployment of that name gets the model instead of its own, without a restart."""
    session = session_of(context)
    with session.client(serving=True) as client:
        wanted = server_pb2.Deployment(
            model=session.sources(client).find(model, field="MODEL").name,
            pool=pool,
            serve_eager=eager,  # None: left out
            compile=compile,
            max_steps=max_steps,
            max_count=max_count,
        )
        deployment = create_or_update(client, name, wanted)
        if wait:
            for deployment in client.deployments.wait(name):
                if deployment.state != server_pb2.DEPLOYMENT_STATE_READY:
                    session.note(line_of(deployment))
        session.show(deployment, line_of(deployment))
        if session.local:
            session.note("it is served while `atelier up` runs on this data folder")


def create_or_update(client: Client, name: str, wanted: server_pb2.Deployment) -> server_pb2.Deployment:
    """The deployment, new or changed."""
    try:
        return client.deployments.create(name, wanted)
    except AtelierError as error:
        if error.status is not Status.ALREADY_EXISTS:
            raise
    if wanted.pool and wanted.pool != (there := client.deployments.get(name).pool):
        raise invalid_field("--pool", f"{name} is on {there} and cannot move: undeploy it first, or choose another name")
    eager = ["serve_eager"] if wanted.HasField("serve_eager") else []
    return client.deployments.update(name, wanted, "model", *eager, "compile", "max_steps", "max_count")


def undeploy(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME", help="The deployment.")]) -> None:
    """Takes a deployment out of service; its model stays."""
    session = session_of(context)
    with session.client() as client:
        client.deployments.delete(name)
        session.show({"name": name}, f"{name} is no longer served")


def deployments(context: typer.Context) -> None:
    """What is served."""
    session = session_of(context)
    with session.client() as client:
        found = list(client.deployments.list())
    if session.json:
        session.show({"deployments": found})
        return
    table = table_of("NAME", "STATE", "ENGINE", "MODEL", "POOL", "MESSAGE")
    for one in found:
        name, model, its_pool = (word.partition("/")[2] for word in (one.name, one.model, one.pool))
        table.add_row(name, state_of(one), engine_of(one), model[:12], its_pool, one.message)
    session.show_table(table)


def state_of(deployment: server_pb2.Deployment) -> str:
    """Its state, as people say it."""
    return server_pb2.DeploymentState.Name(deployment.state).removeprefix("DEPLOYMENT_STATE_").lower()


def engine_of(deployment: server_pb2.Deployment) -> str:
    """How its pictures are computed, as people say it."""
    name = server_pb2.DeploymentEngine.Name(deployment.engine).removeprefix("DEPLOYMENT_ENGINE_").lower()
    return "" if name == "unspecified" else name


def line_of(deployment: server_pb2.Deployment) -> str:
    """A deployment in a line."""
    parts = [deployment.name, state_of(deployment), engine_of(deployment), deployment.message]
    return "  ".join(part for part in parts if part)


def table_of(*columns: str) -> Table:
    """An empty table with these headings."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def cell(session: Session, parts: Iterable[str], *, separator: str = ", ") -> str:
    """Parts in a cell: one below the other for people, one after the other for programs, for which a row is a line."""
    return ("\n" if session.out.is_terminal else separator).join(parts)
