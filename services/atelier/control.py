"""A control process: any of the four services, with ledger, store, workers and gateway, as one `with` block."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

from atelier import base_model
from atelier.artifacts.catalog import Catalog, Record
from atelier.artifacts.importing import examine
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.servicer import ArtifactsServicer
from atelier.artifacts.signing import PUBLIC, Signer
from atelier.artifacts.spool import Spool
from atelier.artifacts.store import Store
from atelier.client.address import Address
from atelier.compiler.servicer import CompilerServicer
from atelier.converter.servicer import ConverterServicer
from atelier.errors import AtelierError
from atelier.jobs.attempts import AttemptsServicer, JobTokens
from atelier.jobs.launcher import LocalLauncher
from atelier.jobs.ledger import JobLedger
from atelier.jobs.reconciler import Reconciler
from atelier.jobs.servicer import JobsServicer
from atelier.jobs.submission import Submission
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.pools import Pool
from atelier.rpc import auth, server
from atelier.rpc.auth import Tokens
from atelier.rpc.interceptors import Authorize
from atelier.rpc.server import Service
from atelier.secret import read_or_make
from atelier.server.installation import RayElsewhere, Serving, ServingSettings
from atelier.server.passing import PASSED, PassThrough
from atelier.settings import SERVICES, Settings
from atelier.trainer.servicer import TrainerServicer
from atelier.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    attempt_pb2,
    attempt_pb2_grpc,
    compiler_pb2,
    compiler_pb2_grpc,
    converter_pb2,
    converter_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

TOKEN, INTERNAL_TOKEN = "token", "internal-token"
"""Files below `keys/`: what clients send, and what the installation's own parts send each other."""
ABANDONED = timedelta(days=1)
"""An upload that was cut off can go on for so long."""

logger = logging.getLogger("atelier.control")


@asynccontextmanager
async def control(settings: Settings, services: Sequence[str], *, gpu: str) -> AsyncIterator[Address]:
    """Runs `services` until the block ends: calls end first, then Ray, then workers, after a checkpoint. `gpu`: the pool's label.

    Gives where this machine itself reaches it.
    """
    keys, tls, pools = settings.data.absolute() / "keys", settings.tls, settings.pools(gpu=gpu)
    opening = Tokens(_file(settings.token_file, keys / TOKEN))
    internal_token_file = _file(settings.internal_token_file, keys / INTERNAL_TOKEN)
    internal_token = Tokens(internal_token_file).all[0]
    database = Database(settings.ledger_url)
    catalog = Catalog(store=Store.open(settings.store_url), database=database, signer=Signer.open(keys))
    await asyncio.to_thread(migrate, database)
    await asyncio.to_thread(_bring_base_model, catalog)
    ledger, spool = JobLedger(database), Spool(settings.data / "spool")
    await asyncio.to_thread(_sweep, catalog.store, spool, alone=set(services) == set(SERVICES))
    tokens = JobTokens(internal_token.encode())
    artifacts = ArtifactsServicer(
        catalog=catalog, spool=spool, import_roots=settings.import_roots, allow_download=settings.allow_download,
        on_deleted=lambda record: _forget_run(record, ledger, catalog.store),
    )  # fmt: skip
    serving = _serving(settings, services, pools, catalog=catalog, database=database, ledger=ledger, token_file=internal_token_file)
    async with AsyncExitStack() as stack:
        attempts = AttemptsServicer(ledger=ledger, catalog=catalog, spool=spool, tokens=tokens)
        inner = [_attempts(attempts), _artifacts(artifacts), *(serving.internal if serving else ())]
        internal = await stack.enter_async_context(
            server.serving(settings.internal_listen, inner, authorize=_internal(internal_token), tls=tls, grace_seconds=2)
        )
        internal_target = f"{settings.internal_host or settings.reached(settings.internal_listen)}:{internal.port}"
        told = {"ATELIER_ATTEMPTS": internal_target, "ATELIER_PUBLIC_KEY": str(settings.public_key_file or keys / PUBLIC)}
        told |= {"ATELIER_LOG_JSON": "true"} if settings.log_json else {}
        launcher = LocalLauncher(
            environment=told | (tls.as_environment() if tls else {}),
            token_of=tokens.token,
            folder=settings.data.absolute() / "workers",
            threads=settings.worker_threads,
        )
        own = [service for service in ("trainer", "converter", "compiler") if service in services]
        reconciler = Reconciler(ledger=ledger, launcher=launcher, services=own, max_workers=settings.max_workers)
        await stack.enter_async_context(reconciler.running())
        passed = _passed(settings, services)
        stack.push_async_callback(passed.close)
        public = [_artifacts(artifacts), _jobs(JobsServicer(ledger=ledger, store=catalog.store))]
        public += [*_job_services(own, catalog, ledger, reconciler, pools), *(serving.public if serving else ())]
        bound = await stack.enter_async_context(
            server.serving(
                settings.listen, public, authorize=auth.bearer_token(opening), handlers=[passed], reflected=passed.names, tls=tls
            )
        )
        target = f"{'https://' if tls else ''}{settings.reached(settings.listen)}:{bound.port}"
        address = Address(target, opening.all[0], tls)
        if settings.health_listen:
            await stack.enter_async_context(server.plain_health(settings.health_listen, bound.health))
        if serving:
            await stack.enter_async_context(serving.started(internal_target=internal_target, own=address))
        stack.push_async_callback(lambda: bound.drain(seconds=settings.drain_seconds))  # before Ray ends, so that running calls can
        yield address
    database.close()


def _bring_base_model(catalog: Catalog) -> None:
    """Commits the model on board under its tag, once."""
    try:
        catalog.get(base_model.TAG)
        return
    except AtelierError:
        found = examine(base_model.folder())
    files = []
    for name, path in found.files.items():
        files.append(File(path=name, size=path.stat().st_size, sha256=hash_file(path)))
        catalog.store.put_blob(path, files[-1])
    catalog.commit(Manifest(kind=found.kind, files=tuple(files)), tags=[base_model.TAG])


def _forget_run(record: Record, ledger: JobLedger, store: Store) -> None:
    """With the record of a run go its checkpoints: nothing names them any more."""
    if record.manifest.kind is Kind.RUN and record.job:
        ledger.forget_checkpoints(record.job)
        store.delete_below(f"checkpoints/{record.job.removeprefix('jobs/')}/")


def _sweep(store: Store, spool: Spool, *, alone: bool) -> None:
    """Forgets uploads that nobody goes on with. Blobs that no artifact has go only before an `alone` process, which runs all services and
    so holds the folder's locks, begins to answer: nobody can commit meanwhile."""
    spool.sweep(older_than=ABANDONED)
    if not alone:
        return
    try:
        store.sweep_blobs(older_than=ABANDONED)
    except AtelierError as error:
        logger.warning("unused files are kept: %s", error)


def _serving(
    settings: Settings,
    services: Sequence[str],
    pools: list[Pool],
    *,
    catalog: Catalog,
    database: Database,
    ledger: JobLedger,
    token_file: Path,
) -> Serving | None:
    if "server" not in services or not settings.serving:
        return None
    data = settings.data.absolute()
    elsewhere = None
    if settings.ray_dashboard:
        assert settings.ray_token_file is not None
        elsewhere = RayElsewhere(
            dashboard=settings.ray_dashboard, token_file=settings.ray_token_file, serve_target=settings.serve_target
        )  # fmt: skip
    given = ServingSettings(
        data=data,
        pools=pools,
        internal_token=Tokens(token_file).all[0],
        internal_token_file=token_file,
        public_key=settings.public_key_file or data / "keys" / PUBLIC,
        elsewhere=elsewhere,
        store_url=catalog.store.url,
        replica_threads=settings.replica_threads,
        serve_port=settings.serve_port,
    )
    return Serving(given, catalog=catalog, database=database, ledger=ledger)


def _internal(token: str) -> Authorize:
    """On the internal port `Attempts` checks the token of its job by itself; everything else asks for the internal one."""
    check = auth.bearer_token(token)

    def authorize(method: str, metadata: Mapping[str, str]) -> None:
        if not method.startswith("/atelier.v1.Attempts/"):
            check(method, metadata)

    return authorize


def _passed(settings: Settings, services: Sequence[str]) -> PassThrough:
    addresses = {name: getattr(settings, name.lower()) for name in PASSED if name.lower() not in services}
    credentials = settings.tls.channel_credentials() if settings.tls else None
    return PassThrough({name: address for name, address in addresses.items() if address}, credentials=credentials)


def _file(given: Path | None, own: Path) -> Path:
    """A file of tokens: the operator's, or the installation's own, made once."""
    if given is None:
        read_or_make(own)
    return given or own


def _job_services(own: Sequence[str], catalog: Catalog, ledger: JobLedger, reconciler: Reconciler, pools: list[Pool]) -> list[Service]:
    found = []
    if "trainer" in own:
        submission = Submission(ledger=ledger, service="trainer", wake=reconciler.wake)
        trainer = TrainerServicer(submission=submission, catalog=catalog, ledger=ledger, pools=[pool.name for pool in pools])
        descriptor = trainer_pb2.DESCRIPTOR.services_by_name["Trainer"]
        found.append(Service(descriptor=descriptor, add=trainer_pb2_grpc.add_TrainerServicer_to_server, servicer=trainer))
    if "converter" in own:
        submission = Submission(ledger=ledger, service="converter", wake=reconciler.wake)
        converter = ConverterServicer(submission=submission, catalog=catalog)
        descriptor = converter_pb2.DESCRIPTOR.services_by_name["Converter"]
        found.append(Service(descriptor=descriptor, add=converter_pb2_grpc.add_ConverterServicer_to_server, servicer=converter))
    if "compiler" in own:
        submission = Submission(ledger=ledger, service="compiler", wake=reconciler.wake)
        compiler = CompilerServicer(submission=submission, catalog=catalog, pools={pool.name: pool.label for pool in pools})
        descriptor = compiler_pb2.DESCRIPTOR.services_by_name["Compiler"]
        found.append(Service(descriptor=descriptor, add=compiler_pb2_grpc.add_CompilerServicer_to_server, servicer=compiler))
    return found


def _attempts(servicer: AttemptsServicer) -> Service:
    descriptor = attempt_pb2.DESCRIPTOR.services_by_name["Attempts"]
    return Service(descriptor=descriptor, add=attempt_pb2_grpc.add_AttemptsServicer_to_server, servicer=servicer)


def _artifacts(servicer: ArtifactsServicer) -> Service:
    descriptor = artifact_pb2.DESCRIPTOR.services_by_name["Artifacts"]
    return Service(descriptor=descriptor, add=artifact_pb2_grpc.add_ArtifactsServicer_to_server, servicer=servicer)


def _jobs(servicer: JobsServicer) -> Service:
    descriptor = job_pb2.DESCRIPTOR.services_by_name["Jobs"]
    return Service(descriptor=descriptor, add=job_pb2_grpc.add_JobsServicer_to_server, servicer=servicer)
