"""An Atelier that answers as it is told, over real sockets, for tests of what calls it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2

from atelier.artifacts.catalog import Catalog
from atelier.artifacts.servicer import ArtifactsServicer
from atelier.artifacts.spool import Spool
from atelier.artifacts.store import Store
from atelier.errors import AtelierError, not_found
from atelier.ledger import Database
from atelier.migrations import migrate
from atelier.rpc import auth, server
from atelier.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    compiler_pb2,
    compiler_pb2_grpc,
    converter_pb2,
    converter_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

Answer = Any
"""A message to send, an AtelierError to raise, or (in streams) a list of them."""


def event(sequence: int, **content: Any) -> job_pb2.WatchJobResponse:
    return job_pb2.WatchJobResponse(event=job_pb2.JobEvent(sequence=sequence, **content))


def progress(sequence: int, step: int, total: int = 100, phase: str = "training", **figures: float) -> job_pb2.WatchJobResponse:
    return event(sequence, progress=job_pb2.JobProgress(phase=phase, step=step, total_steps=total, **figures))


def ended(state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_SUCCEEDED, **fields: Any) -> job_pb2.WatchJobResponse:
    return job_pb2.WatchJobResponse(job=job_pb2.Job(name="jobs/j1", state=state, **fields))


class FakeAtelier(
    job_pb2_grpc.JobsServicer,
    trainer_pb2_grpc.TrainerServicer,
    converter_pb2_grpc.ConverterServicer,
    compiler_pb2_grpc.CompilerServicer,
    server_pb2_grpc.ServerServicer,
    image_pb2_grpc.ImagesServicer,
):
    """Records what it is asked. `answers[method]` is a list of what is answered in turn; its last entry is answered for ever."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, list[Answer]] = {}
        self.deployments: dict[str, server_pb2.Deployment] = {}

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.asked if name == method]

    def answer(self, method: str, request: Any, default: Callable[[], Any]) -> Any:
        self.asked.append((method, request))
        turns = self.answers.get(method, [])
        found = (turns.pop(0) if len(turns) > 1 else turns[0]) if turns else default()
        if isinstance(found, AtelierError):
            raise found
        return found

    async def stream(self, found: Any) -> AsyncIterator[Any]:
        for message in found:
            if isinstance(message, AtelierError):
                raise message
            yield message

    def job(self, request: Any) -> job_pb2.Job:
        spec = any_pb2.Any()
        spec.Pack(request)
        name = "" if getattr(request, "validate_only", False) else "jobs/j1"
        return job_pb2.Job(name=name, spec=spec, plan=["30 steps"])

    async def Train(self, request: trainer_pb2.TrainRequest, context: Any) -> Any:
        return self.answer("Train", request, lambda: self.job(request))

    async def Promote(self, request: Any, context: Any) -> Any:
        return self.answer("Promote", request, lambda: self.job(request))

    async def Convert(self, request: Any, context: Any) -> Any:
        return self.answer("Convert", request, lambda: self.job(request))

    async def Merge(self, request: Any, context: Any) -> Any:
        return self.answer("Merge", request, lambda: self.job(request))

    async def Compile(self, request: Any, context: Any) -> Any:
        return self.answer("Compile", request, lambda: self.job(request))

    async def GetJob(self, request: Any, context: Any) -> Any:
        return self.answer("GetJob", request, lambda: job_pb2.Job(name=request.name))

    async def ListJobs(self, request: Any, context: Any) -> Any:
        return self.answer("ListJobs", request, job_pb2.ListJobsResponse)

    async def CancelJob(self, request: Any, context: Any) -> Any:
        return self.answer("CancelJob", request, lambda: job_pb2.Job(name=request.name, state=job_pb2.JOB_STATE_CANCELLED))

    async def DeleteJob(self, request: Any, context: Any) -> Any:
        return self.answer("DeleteJob", request, job_pb2.DeleteJobResponse)

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self.stream(self.answer("WatchJob", request, lambda: [ended()])):
            yield message

    async def CreateDeployment(self, request: Any, context: Any) -> Any:
        def create() -> server_pb2.Deployment:
            made = server_pb2.Deployment()
            made.CopyFrom(request.deployment)
            made.name, made.state, made.pool = f"deployments/{request.deployment_id}", server_pb2.DEPLOYMENT_STATE_READY, "pools/local"
            self.deployments[made.name] = made
            return made

        return self.answer("CreateDeployment", request, create)

    async def UpdateDeployment(self, request: Any, context: Any) -> Any:
        self.deployments[request.deployment.name] = request.deployment
        return self.answer("UpdateDeployment", request, lambda: request.deployment)

    async def GetDeployment(self, request: Any, context: Any) -> Any:
        def get() -> server_pb2.Deployment:
            if request.name not in self.deployments:
                raise not_found("deployment", request.name)
            return self.deployments[request.name]

        return self.answer("GetDeployment", request, get)

    async def ListDeployments(self, request: Any, context: Any) -> Any:
        return self.answer("ListDeployments", request, lambda: server_pb2.ListDeploymentsResponse(deployments=self.deployments.values()))

    async def DeleteDeployment(self, request: Any, context: Any) -> Any:
        return self.answer("DeleteDeployment", request, server_pb2.DeleteDeploymentResponse)

    async def ListPools(self, request: Any, context: Any) -> Any:
        return self.answer("ListPools", request, server_pb2.ListPoolsResponse)

    async def PlanEngines(self, request: Any, context: Any) -> Any:
        return self.answer("PlanEngines", request, server_pb2.PlanEnginesResponse)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self.stream(self.answer("Generate", request, lambda: self.pictures(request))):
            yield message

    def pictures(self, request: image_pb2.GenerateRequest) -> list[image_pb2.GenerateResponse]:
        parts = [image_pb2.GenerateResponse(progress=image_pb2.GenerateProgress(step=1, total_steps=2, previews=[b"small"]))]
        for index in range(request.count or 1):
            image = image_pb2.GeneratedImage(
                index=index, seed=request.seed + index, png=b"png%d" % index, width=128, height=128, engine="eager"
            )
            parts.append(image_pb2.GenerateResponse(image=image))
        return parts


@contextmanager
def serving(fake: FakeAtelier, folder: Path | None = None, *, token: str = "", port: int = 0) -> Iterator[str]:
    """Serves the fake (and with `folder` a real artifact store in it) from a thread of its own; gives the address."""
    authorize = auth.bearer_token(token) if token else auth.allow_all
    bound: list[int] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def main() -> None:
        async with server.serving(f"127.0.0.1:{port}", services(fake, folder), authorize=authorize, grace_seconds=0.2) as found:
            bound.append(found.port)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[main()])
    thread.start()
    assert ready.wait(10)
    try:
        yield f"127.0.0.1:{bound[0]}"
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()


def services(fake: FakeAtelier, folder: Path | None) -> list[server.Service]:
    adders = [
        (job_pb2, "Jobs", job_pb2_grpc.add_JobsServicer_to_server),
        (trainer_pb2, "Trainer", trainer_pb2_grpc.add_TrainerServicer_to_server),
        (converter_pb2, "Converter", converter_pb2_grpc.add_ConverterServicer_to_server),
        (compiler_pb2, "Compiler", compiler_pb2_grpc.add_CompilerServicer_to_server),
        (server_pb2, "Server", server_pb2_grpc.add_ServerServicer_to_server),
        (image_pb2, "Images", image_pb2_grpc.add_ImagesServicer_to_server),
    ]
    made = [server.Service(descriptor=m.DESCRIPTOR.services_by_name[n], add=add, servicer=fake) for m, n, add in adders]  # type: ignore[attr-defined]
    if folder is not None:
        database = Database(f"sqlite:///{folder / 'ledger.db'}")
        migrate(database)
        catalog = Catalog(store=Store.open(f"file://{folder / 'store'}"), database=database)
        artifacts = ArtifactsServicer(catalog=catalog, spool=Spool(folder / "spool"))
        made.append(
            server.Service(
                descriptor=artifact_pb2.DESCRIPTOR.services_by_name["Artifacts"],
                add=artifact_pb2_grpc.add_ArtifactsServicer_to_server,
                servicer=artifacts,
            )
        )
    return made
