"""A control process: any of the four services, with ledger, store, workers and gateway, as one `with` block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from atelier.artifacts.servicer import ArtifactsServicer
from atelier.client.address import Address
from atelier.compiler.servicer import CompilerServicer
from atelier.converter.servicer import ConverterServicer
from atelier.jobs.attempts import AttemptsServicer, JobTokens
from atelier.jobs.launcher import Launcher, LocalLauncher
from atelier.jobs.reconciler import Reconciler
from atelier.jobs.servicer import JobsServicer
from atelier.jobs.submission import Submission
from atelier.lease import Lease
from atelier.parts import Parts, opened
from atelier.rpc import auth, server
from atelier.rpc.interceptors import Authorize
from atelier.rpc.server import Service
from atelier.server.installation import RayElsewhere, Serving, ServingSettings
from atelier.server.passing import PASSED, PassThrough
from atelier.settings import Settings
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


@asynccontextmanager
async def control(settings: Settings, services: Sequence[str], *, gpu: str) -> AsyncIterator[Address]:
    """Runs `services` until the block ends: calls end first, then Ray, then workers, after a checkpoint. `gpu`: see `Settings.pools`.

    Gives where this machine itself reaches it.
    """
    parts = await asyncio.to_thread(opened, settings, services, gpu=gpu)
    tls, serving = parts.tls, _serving(parts)
    async with AsyncExitStack() as stack:
        stack.callback(parts.database.close)
        stack.enter_context(parts.meters.served(parts.database, standing=serving.standing if serving else None, tls=tls))
        tokens = JobTokens(parts.internal_token.encode())
        artifacts = _artifacts(parts)
        inner = [_attempts(parts, tokens), artifacts, *(serving.internal if serving else ())]
        internal = await stack.enter_async_context(
            server.serving(
                settings.internal_listen, inner, authorize=_internal(parts.internal_token), tls=tls, grace_seconds=2, meters=parts.meters
            )
        )
        internal_target = f"{settings.internal_host or settings.reached(settings.internal_listen)}:{internal.port}"
        reconciler = _reconciler(parts, tokens, internal_target)
        await stack.enter_async_context(reconciler.running())
        passed = _passed(parts)
        stack.push_async_callback(passed.close)
        public = [artifacts, _jobs(parts), *_job_services(parts, reconciler), *(serving.public if serving else ())]
        bound = await stack.enter_async_context(
            server.serving(
                settings.listen, public, authorize=auth.bearer_token(parts.tokens), handlers=[passed], reflected=passed.names, tls=tls,
                meters=parts.meters, grace_seconds=settings.grace_seconds,
            )
        )  # fmt: skip
        target = f"{'https://' if tls else ''}{settings.reached(settings.listen)}:{bound.port}"
        address = Address(target, parts.tokens.all[0], tls)
        if settings.health_listen:
            await stack.enter_async_context(server.plain_health(settings.health_listen, bound.health))
        if serving:
            await stack.enter_async_context(serving.started(internal_target=internal_target, own=address))
        stack.push_async_callback(lambda: bound.drain(seconds=settings.drain_seconds))  # before Ray ends, so that running calls can
        yield address


def _serving(parts: Parts) -> Serving | None:
    settings = parts.settings
    if "server" not in parts.services or not settings.serving:
        return None
    elsewhere = None
    if settings.ray_dashboard:
        assert settings.ray_token_file is not None
        elsewhere = RayElsewhere(
            dashboard=settings.ray_dashboard, token_file=settings.ray_token_file, serve_target=settings.serve_target
        )  # fmt: skip
    given = ServingSettings(
        data=parts.data,
        pools=parts.pools,
        internal_token=parts.internal_token,
        internal_token_file=parts.internal_token_file,
        public_key=parts.public_key,
        store_url=parts.catalog.store.url,
        replica_threads=settings.replica_threads,
        serve_port=settings.serve_port,
        elsewhere=elsewhere,
    )
    return Serving(given, catalog=parts.catalog, database=parts.database, ledger=parts.ledger, meters=parts.meters)


def _reconciler(parts: Parts, tokens: JobTokens, internal_target: str) -> Reconciler:
    services, settings = parts.job_services, parts.settings
    # Where other processes may run the same services on the same ledger, one of them starts workers.
    several = parts.database.shared or settings.launcher == "kubernetes"
    lease = Lease(database=parts.database, name="-".join(["workers", *services])) if several else None
    if settings.launcher == "local":
        launcher: Launcher = _local_launcher(parts, tokens, internal_target)
        return Reconciler(ledger=parts.ledger, launcher=launcher, services=services, lease=lease, max_workers=settings.max_workers)
    from atelier.kubernetes.launcher import KubernetesLauncher
    from atelier.kubernetes.objects import core

    api, namespace = core()
    assert settings.workers_dir is not None
    launcher = KubernetesLauncher(
        api, namespace=namespace, manifests=settings.workers_dir, services=services, pools=parts.pools, token_of=tokens.token
    )
    return Reconciler(ledger=parts.ledger, launcher=launcher, services=services, lease=lease, max_workers=0)


def _local_launcher(parts: Parts, tokens: JobTokens, internal_target: str) -> LocalLauncher:
    told = {"ATELIER_ATTEMPTS": internal_target, "ATELIER_PUBLIC_KEY": str(parts.public_key)}
    told |= {"ATELIER_LOG_JSON": "true"} if parts.settings.log_json else {}
    return LocalLauncher(
        environment=told | (parts.tls.as_environment() if parts.tls else {}),
        token_of=tokens.token,
        folder=parts.data / "workers",
        threads=parts.settings.worker_threads,
    )


def _internal(token: str) -> Authorize:
    """On the internal port `Attempts` checks the token of its job by itself; everything else asks for the internal one."""
    check = auth.bearer_token(token)

    def authorize(method: str, metadata: Mapping[str, str]) -> None:
        if not method.startswith("/atelier.v1.Attempts/"):
            check(method, metadata)

    return authorize


def _passed(parts: Parts) -> PassThrough:
    addresses = {name: getattr(parts.settings, name.lower()) for name in PASSED if name.lower() not in parts.services}
    credentials = parts.tls.channel_credentials() if parts.tls else None
    return PassThrough({name: address for name, address in addresses.items() if address}, credentials=credentials)


def _job_services(parts: Parts, reconciler: Reconciler) -> list[Service]:
    found = []
    for service in parts.job_services:
        submission = Submission(ledger=parts.ledger, service=service, wake=reconciler.wake)
        if service == "trainer":
            trainer = TrainerServicer(submission=submission, catalog=parts.catalog, ledger=parts.ledger, pools=list(parts.labels))
            descriptor = trainer_pb2.DESCRIPTOR.services_by_name["Trainer"]
            found.append(Service(descriptor=descriptor, add=trainer_pb2_grpc.add_TrainerServicer_to_server, servicer=trainer))
        elif service == "converter":
            converter = ConverterServicer(submission=submission, catalog=parts.catalog)
            descriptor = converter_pb2.DESCRIPTOR.services_by_name["Converter"]
            found.append(Service(descriptor=descriptor, add=converter_pb2_grpc.add_ConverterServicer_to_server, servicer=converter))
        else:
            compiler = CompilerServicer(submission=submission, catalog=parts.catalog, pools=parts.labels)
            descriptor = compiler_pb2.DESCRIPTOR.services_by_name["Compiler"]
            found.append(Service(descriptor=descriptor, add=compiler_pb2_grpc.add_CompilerServicer_to_server, servicer=compiler))
    return found


def _attempts(parts: Parts, tokens: JobTokens) -> Service:
    url = parts.catalog.store.url
    on_this_machine = parts.settings.launcher == "local"
    servicer = AttemptsServicer(
        ledger=parts.ledger, catalog=parts.catalog, spool=parts.spool, tokens=tokens,
        store_url=url if on_this_machine or not url.startswith("file:") else "",
    )  # fmt: skip
    descriptor = attempt_pb2.DESCRIPTOR.services_by_name["Attempts"]
    return Service(descriptor=descriptor, add=attempt_pb2_grpc.add_AttemptsServicer_to_server, servicer=servicer)


def _artifacts(parts: Parts) -> Service:
    servicer = ArtifactsServicer(
        catalog=parts.catalog, spool=parts.spool, import_roots=parts.settings.import_roots,
        allow_download=parts.settings.allow_download, on_deleted=parts.forget_run,
    )  # fmt: skip
    descriptor = artifact_pb2.DESCRIPTOR.services_by_name["Artifacts"]
    return Service(descriptor=descriptor, add=artifact_pb2_grpc.add_ArtifactsServicer_to_server, servicer=servicer)


def _jobs(parts: Parts) -> Service:
    servicer = JobsServicer(ledger=parts.ledger, store=parts.catalog.store)
    descriptor = job_pb2.DESCRIPTOR.services_by_name["Jobs"]
    return Service(descriptor=descriptor, add=job_pb2_grpc.add_JobsServicer_to_server, servicer=servicer)
