"""A control process in miniature: ledger, catalog, Attempts and a reconciler that starts the toy workers of this folder."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.signing import PUBLIC, Signer
from atelier.artifacts.spool import Spool
from atelier.artifacts.store import Store
from atelier.jobs.attempts import AttemptsServicer, JobTokens
from atelier.jobs.launcher import LocalLauncher
from atelier.jobs.ledger import JobLedger
from atelier.jobs.reconciler import Reconciler
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.rpc import auth, server
from atelier.rpc.tls import Tls
from atelier.v1 import attempt_pb2, attempt_pb2_grpc


@dataclass
class Installation:
    """What a test reaches."""

    ledger: JobLedger
    catalog: Catalog
    tokens: JobTokens
    attempts_port: int = 0


def open_installation(folder: Path, *, store_url: str = "") -> Installation:
    database = Database(f"sqlite:///{folder}/ledger.db")
    migrate(database)
    store = Store.open(store_url or f"file://{folder}/store")
    catalog = Catalog(store=store, database=database, signer=Signer.open(folder / "keys"))
    return Installation(ledger=JobLedger(database), catalog=catalog, tokens=JobTokens(b"secret"))


@asynccontextmanager
async def attempts(
    installation: Installation, folder: Path, *, tls: Tls | None = None, told_store: str | None = None
) -> AsyncIterator[Installation]:
    """`told_store`: what workers hear of the store; its URL unless said otherwise."""
    servicer = AttemptsServicer(
        ledger=installation.ledger,
        catalog=installation.catalog,
        spool=Spool(folder / "spool"),
        tokens=installation.tokens,
        store_url=installation.catalog.store.url if told_store is None else told_store,
    )
    service = server.Service(
        descriptor=attempt_pb2.DESCRIPTOR.services_by_name["Attempts"],
        add=attempt_pb2_grpc.add_AttemptsServicer_to_server,
        servicer=servicer,
    )
    async with server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, grace_seconds=1, tls=tls) as bound:
        installation.attempts_port = bound.port
        yield installation


@asynccontextmanager
async def working(installation: Installation, folder: Path) -> AsyncIterator[Reconciler]:
    """Attempts and a reconciler with real worker processes."""
    async with attempts(installation, folder):
        launcher = LocalLauncher(
            environment={
                "ATELIER_ATTEMPTS": f"127.0.0.1:{installation.attempts_port}",
                "ATELIER_PUBLIC_KEY": str(folder / "keys" / PUBLIC),
                "PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path]),
            },
            token_of=installation.tokens.token,
            folder=folder / "workers",
            package="toys",
        )
        reconciler = Reconciler(ledger=installation.ledger, launcher=launcher, services=["trainer"], grace_seconds=5)
        async with reconciler.running():
            yield reconciler
