"""One address for all: calls passed on to a process behind, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from atelier.errors import AtelierError, Status, Violation, invalid
from atelier.rpc import auth, server
from atelier.rpc.channel import aio_channel, bearer
from atelier.rpc.status import from_call
from atelier.server.passing import PassThrough
from atelier.v1 import attempt_pb2, attempt_pb2_grpc, job_pb2, trainer_pb2, trainer_pb2_grpc

TOKEN = bearer("right")


class FakeTrainer(trainer_pb2_grpc.TrainerServicer):
    def __init__(self) -> None:
        self.asked: list[trainer_pb2.TrainRequest] = []
        self.seconds = 0.0
        self.gone = asyncio.Event()

    async def Train(self, request: trainer_pb2.TrainRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        self.asked.append(request)
        self.seconds = context.time_remaining() or 0.0
        if request.instance_prompt == "bad":
            raise invalid([Violation("rank", "must be positive"), Violation("resolution", "must be a multiple of 8")])
        if request.instance_prompt == "slow":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.gone.set()
                raise
        return job_pb2.Job(name="jobs/a")


def service(trainer: FakeTrainer) -> server.Service:
    descriptor = trainer_pb2.DESCRIPTOR.services_by_name["Trainer"]
    return server.Service(descriptor=descriptor, add=trainer_pb2_grpc.add_TrainerServicer_to_server, servicer=trainer)


@asynccontextmanager
async def front(address: str) -> AsyncIterator[grpc.aio.Channel]:
    passed = PassThrough({"Trainer": address, "Attempts": address})
    serving = server.serving(
        "127.0.0.1:0", [], authorize=auth.bearer_token("right"), handlers=[passed], reflected=passed.names, grace_seconds=1
    )
    async with serving as bound, aio_channel(f"127.0.0.1:{bound.port}") as channel:
        yield channel
    await passed.close()


@asynccontextmanager
async def gateway(trainer: FakeTrainer) -> AsyncIterator[grpc.aio.Channel]:
    behind = server.serving("127.0.0.1:0", [service(trainer)], authorize=auth.bearer_token("right"), grace_seconds=1)
    async with behind as bound, front(f"127.0.0.1:{bound.port}") as channel:
        yield channel


async def error_of(call: Any) -> AtelierError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call(caught.value)


async def test_a_call_goes_through_with_token_and_deadline() -> None:
    trainer = FakeTrainer()
    async with gateway(trainer) as channel:
        stub: Any = trainer_pb2_grpc.TrainerStub(channel)
        request = trainer_pb2.TrainRequest(instance_prompt="a sks emoji", rank=0)
        assert (await stub.Train(request, metadata=TOKEN, timeout=20)).name == "jobs/a"
        assert (await error_of(stub.Train(request, timeout=20))).status is Status.UNAUTHENTICATED
    assert trainer.asked == [request], "presence of fields is kept, and a call without the token stops in front"
    assert 10 < trainer.seconds <= 21  # gRPC rounds it


async def test_an_error_keeps_its_details() -> None:
    async with gateway(FakeTrainer()) as channel:
        stub: Any = trainer_pb2_grpc.TrainerStub(channel)
        bad = await error_of(stub.Train(trainer_pb2.TrainRequest(instance_prompt="bad"), metadata=TOKEN))
        unknown = await error_of(stub.Train(trainer_pb2.TrainRequest(method=77), metadata=TOKEN))  # type: ignore[arg-type]
    assert (bad.status, [v.field for v in bad.violations]) == (Status.INVALID_ARGUMENT, ["rank", "resolution"])
    assert (unknown.status, "METHOD_DREAMBOOTH_LORA" in unknown.message) == (Status.INVALID_ARGUMENT, True)


async def test_a_client_that_goes_away_ends_the_call_behind() -> None:
    trainer = FakeTrainer()
    async with gateway(trainer) as channel:
        stub: Any = trainer_pb2_grpc.TrainerStub(channel)
        call = stub.Train(trainer_pb2.TrainRequest(instance_prompt="slow"), metadata=TOKEN)
        while not trainer.asked:
            await asyncio.sleep(0.02)
        call.cancel()
        assert await asyncio.wait_for(trainer.gone.wait(), 5)


async def test_a_process_that_is_away_is_named_and_its_address_is_not() -> None:
    async with front("127.0.0.1:1") as channel:
        stub: Any = trainer_pb2_grpc.TrainerStub(channel)
        error = await error_of(stub.Train(trainer_pb2.TrainRequest(), metadata=TOKEN, timeout=20))
    assert (error.status, error.reason) == (Status.UNAVAILABLE, "SERVICE_UNAVAILABLE")
    assert "Trainer" in error.message and "127.0.0.1" not in error.message
    assert error.retry_after_seconds


async def test_internal_services_are_never_passed_on() -> None:
    async with gateway(FakeTrainer()) as channel:
        stub: Any = attempt_pb2_grpc.AttemptsStub(channel)
        error = await error_of(stub.Claim(attempt_pb2.ClaimRequest(job="jobs/a"), metadata=TOKEN))
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = await reflection.ServerReflectionInfo(iter([asked]), metadata=TOKEN).read()
    assert error.status is Status.UNIMPLEMENTED
    names = {found.name for found in answer.list_services_response.service}
    assert "atelier.v1.Trainer" in names and "atelier.v1.Attempts" not in names
