"""How a server ends: health first, then no new calls, watches end, and what runs gets the grace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atelier import errors
from atelier.rpc import auth, server, status
from atelier.rpc.stopping import until, wait_until
from atelier.v1 import image_pb2, image_pb2_grpc, job_pb2, job_pb2_grpc

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Jobs(job_pb2_grpc.JobsServicer):
    """A job that never ends."""

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        return job_pb2.Job(name=request.name)

    async def WatchJob(self, request: job_pb2.WatchJobRequest, context: Any) -> AsyncIterator[job_pb2.WatchJobResponse]:  # type: ignore[override]
        yield job_pb2.WatchJobResponse(event=job_pb2.JobEvent(sequence=request.after_sequence + 1))
        await asyncio.Event().wait()


class Images(image_pb2_grpc.ImagesServicer):
    """A picture in a second."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[image_pb2.GenerateResponse]:
        yield image_pb2.GenerateResponse(progress=image_pb2.GenerateProgress(step=1, total_steps=2))
        await asyncio.sleep(1)
        yield image_pb2.GenerateResponse(image=image_pb2.GeneratedImage(png=b"png"))


SERVICES = [
    server.Service(descriptor=job_pb2.DESCRIPTOR.services_by_name["Jobs"], add=job_pb2_grpc.add_JobsServicer_to_server, servicer=Jobs()),
    server.Service(
        descriptor=image_pb2.DESCRIPTOR.services_by_name["Images"], add=image_pb2_grpc.add_ImagesServicer_to_server, servicer=Images()
    ),
]


def serving(**more: Any) -> Any:
    return server.serving("127.0.0.1:0", SERVICES, authorize=auth.allow_all, **more)


async def test_health_changes_first_on_both_ports_and_calls_are_answered_meanwhile() -> None:
    async with (
        serving() as bound,
        server.plain_health("127.0.0.1:0", bound.health) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{bound.port}") as own,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as plain,
    ):
        jobs: Any = job_pb2_grpc.JobsStub(own)
        await jobs.GetJob(job_pb2.GetJobRequest(name="jobs/a"))
        draining = asyncio.create_task(bound.drain(seconds=1))
        await asyncio.sleep(0.1)
        for channel in (own, plain):
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(service="atelier.v1.Jobs"))).status == NOT_SERVING
        async with grpc.aio.insecure_channel(f"127.0.0.1:{bound.port}") as late:
            new: Any = job_pb2_grpc.JobsStub(late)
            for stub in (jobs, new):
                assert (await stub.GetJob(job_pb2.GetJobRequest(name="jobs/a"))).name == "jobs/a"
        await draining
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await jobs.GetJob(job_pb2.GetJobRequest(name="jobs/a"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING


async def test_watches_end_at_once_as_unavailable_and_pictures_get_the_grace() -> None:
    async with serving(grace_seconds=20) as bound, grpc.aio.insecure_channel(f"127.0.0.1:{bound.port}") as channel:
        watch: Any = job_pb2_grpc.JobsStub(channel).WatchJob(job_pb2.WatchJobRequest(name="jobs/a", after_sequence=6))
        health: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        pictures: Any = image_pb2_grpc.ImagesStub(channel).Generate(image_pb2.GenerateRequest())
        assert (await watch.read()).event.sequence == 7
        await health.read()
        await pictures.read()
        begin = time.monotonic()
        await bound.drain(seconds=0)
        assert 0.5 < time.monotonic() - begin < 5  # as long as the picture took
        assert (await pictures.read()).image.png == b"png"
        assert (await health.read()).status == NOT_SERVING
        for stream in (watch, health):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            error = status.from_call(caught.value)
            assert (error.status, error.reason) == (errors.Status.UNAVAILABLE, "SERVER_STOPPING")


async def test_what_does_not_end_within_the_grace_is_cut_off() -> None:
    async with serving(grace_seconds=0.2) as bound, grpc.aio.insecure_channel(f"127.0.0.1:{bound.port}") as channel:
        pictures: Any = image_pb2_grpc.ImagesStub(channel).Generate(image_pb2.GenerateRequest())
        await pictures.read()
        await bound.drain(seconds=0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pictures.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_old_connection_is_left_between_calls_and_cuts_none_off() -> None:
    peers = set()

    class Peers(job_pb2_grpc.JobsServicer):
        async def GetJob(self, request: Any, context: Any) -> job_pb2.Job:
            peers.add(context.peer())
            return job_pb2.Job()

    answering = server.Service(
        descriptor=job_pb2.DESCRIPTOR.services_by_name["Jobs"], add=job_pb2_grpc.add_JobsServicer_to_server, servicer=Peers()
    )
    async with (
        server.serving("127.0.0.1:0", [answering, SERVICES[1]], authorize=auth.allow_all, max_connection_age_seconds=0.3) as bound,
        grpc.aio.insecure_channel(f"127.0.0.1:{bound.port}") as channel,
    ):
        pictures: Any = image_pb2_grpc.ImagesStub(channel).Generate(image_pb2.GenerateRequest())
        jobs: Any = job_pb2_grpc.JobsStub(channel)
        for _ in range(15):
            await jobs.GetJob(job_pb2.GetJobRequest(), wait_for_ready=True)
            await asyncio.sleep(0.1)
        assert [response.WhichOneof("part") async for response in pictures] == ["progress", "image"]
    assert len(peers) > 1


async def test_a_watch_that_ends_by_itself_ends_as_it_did() -> None:
    async def two() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert [response async for response in until(asyncio.Event(), two())] == [1, 2]  # type: ignore[arg-type]


async def test_what_is_waited_for_is_cancelled_with_its_caller() -> None:
    ended = asyncio.Event()

    async def answer() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(wait_until(asyncio.Event(), answer()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
