"""`atelier pools`: where models are served, and why something waits."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from atelier.cli.deploy import cell, table_of
from atelier.cli.session import session_of
from atelier.v1 import server_pb2

DIGITS = 12
"""Of a digest, so many are shown."""


def pools(context: typer.Context) -> None:
    """Where models are served: nodes, what is in memory, and why something waits."""
    session = session_of(context)
    with session.client() as client:
        found = client.deployments.pools()
    if session.json:
        session.show({"pools": found})
        return
    table = table_of("NAME", "GPU", "REPLICAS", "NODES", "PRODUCT", "BACKENDS", "ENGINES", "MODELS", "MESSAGE")
    for pool in found:
        lists = [nodes_of(pool), products_of(pool), backends_of(pool), short(pool.engines), short(pool.models)]
        cells = [cell(session, found) for found in lists]
        message = cell(session, waits_of(pool), separator="; ")
        table.add_row(pool.name.partition("/")[2], pool.gpu, replicas_of(pool), *cells, message)
    session.show_table(table)


def replicas_of(pool: server_pb2.Pool) -> str:
    """`1 of 2 (0-4)`: that report, that are wanted where others are, and the bounds."""
    if not pool.max_replicas:
        return "jobs only"
    wanted = f" of {pool.target_replicas}" if pool.target_replicas != pool.replicas else ""
    bounds = f"{pool.min_replicas}-{pool.max_replicas}" if pool.min_replicas != pool.max_replicas else str(pool.max_replicas)
    return f"{pool.replicas}{wanted} ({bounds})"


def nodes_of(pool: server_pb2.Pool) -> list[str]:
    """Its nodes, a line each."""
    return [f"{node.name} {'ready' if node.ready else 'not ready'}" for node in pool.nodes]


def products_of(pool: server_pb2.Pool) -> list[str]:
    """What its replicas are, each once."""
    return sorted({fingerprint.product for fingerprint in pool.fingerprints})


def backends_of(pool: server_pb2.Pool) -> list[str]:
    """What its replicas can run engines with, each once."""
    return sorted({f"{name} {version}" for each in pool.fingerprints for name, version in each.backends.items()})


def waits_of(pool: server_pb2.Pool) -> list[str]:
    """What it waits for, and what waits for it, a line each."""
    nodes = [f"{node.name}: {node.reason}" for node in pool.nodes if node.reason and node.reason not in pool.message]
    jobs = [f"{job.job} waits: {job.reason}" for job in pool.waiting_jobs]
    return [line for line in (pool.message, *nodes, *jobs) if line]


def short(artifacts: Iterable[str]) -> list[str]:
    """Beginnings of digests, by which artifacts can be named."""
    return [name.removeprefix("artifacts/")[:DIGITS] for name in artifacts]
