"""The gateway over real sockets, before something that plays Ray Serve's gRPC port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.artifacts.catalog import ArtifactRow
from atelier.errors import AtelierError, Status, not_found
from atelier.ledger import Database, now
from atelier.migrations import migrate
from atelier.rpc import auth, server
from atelier.rpc.channel import aio_channel
from atelier.rpc.status import abort_arguments, from_call
from atelier.server.deployments import Deployment, DeploymentLedger
from atelier.server.gateway import ImagesServicer
from atelier.server.pool import Status as Standing
from atelier.server.proxies import Proxies
from atelier.v1 import image_pb2, image_pb2_grpc, replica_pb2, replica_pb2_grpc, server_pb2

TOKEN = "internal"


class FakePools:
    """A pool that stands as it is told."""

    def __init__(self, state: server_pb2.DeploymentState.ValueType = server_pb2.DEPLOYMENT_STATE_READY, *, waits: bool = False) -> None:
        self.state, self.waits = state, waits

    def status(self, deployment: Deployment) -> Standing:
        engine = "" if self.waits else "artifacts/e"
        return Standing(state=self.state, message="its weights are being loaded", engine_artifact=engine, waits=self.waits)

    def engines_there(self, deployment: Deployment) -> list[str]:
        return ["artifacts/f"]

    def size(self, model: str) -> tuple[int, int]:
        return 128, 64


class FakeReplicas(replica_pb2_grpc.SamplingServicer):
    """Plays what `turns` say, one after the other; the last one for ever."""

    def __init__(self, *turns: Callable[[Any], AsyncIterator[Any]]) -> None:
        self.turns = list(turns)
        self.asked: list[tuple[replica_pb2.SampleRequest, dict[str, str], float]] = []
        self.gone = asyncio.Event()

    async def Sample(self, request: replica_pb2.SampleRequest, context: Any) -> AsyncIterator[Any]:
        self.asked.append((request, dict(context.invocation_metadata()), context.time_remaining() or 0.0))
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        try:
            async for response in turn(context):
                yield response
        except asyncio.CancelledError:
            self.gone.set()
            raise


def picture() -> image_pb2.GenerateResponse:
    return image_pb2.GenerateResponse(image=image_pb2.GeneratedImage(png=b"png"))


async def draws(context: Any) -> AsyncIterator[Any]:
    yield image_pb2.GenerateResponse(progress=image_pb2.GenerateProgress(step=1, total_steps=2))
    yield picture()


async def dies(context: Any) -> AsyncIterator[Any]:
    yield image_pb2.GenerateResponse(progress=image_pb2.GenerateProgress(step=1, total_steps=2))
    await context.abort(grpc.StatusCode.UNAVAILABLE, "worker 10.1.2.3 died: Traceback (most recent call last)")


async def dies_after_a_picture(context: Any) -> AsyncIterator[Any]:
    yield picture()
    await context.abort(grpc.StatusCode.INTERNAL, "Traceback")


async def is_full(context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "max_queued_requests")
    yield


async def ends_early(context: Any) -> AsyncIterator[Any]:
    yield image_pb2.GenerateResponse(progress=image_pb2.GenerateProgress(step=1, total_steps=2))


async def refuses(context: Any) -> AsyncIterator[Any]:
    yield image_pb2.GenerateResponse()  # as a replica does
    code, message, metadata = abort_arguments(AtelierError(Status.FAILED_PRECONDITION, "MODEL_NOT_USABLE", "compile it for this device"))
    context.set_trailing_metadata(metadata)
    await context.abort(code, message)


async def is_stopped(context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.CANCELLED, "replica 5f is shutting down")
    yield


async def never_ends(context: Any) -> AsyncIterator[Any]:
    yield image_pb2.GenerateResponse(progress=image_pb2.GenerateProgress(step=1, total_steps=2))
    await asyncio.sleep(60)


@asynccontextmanager
async def gateway(*replicas: FakeReplicas, folder: Path, pools: Any = None, max_in_work: int = 64) -> AsyncIterator[Any]:
    """Before proxies that lead to one of the replicas each."""
    database = Database(f"sqlite:///{folder / 'ledger.db'}")
    migrate(database)
    with database.transaction() as session:
        session.add(ArtifactRow(digest="a" * 64, kind="MODEL", key="", job="", signature=b"", create_time=now()))
    deployments = DeploymentLedger(database)
    deployments.create(Deployment(id="fox", model="a" * 64, pool="local", max_steps=50), request_id="", body=b"")
    async with AsyncExitStack() as stack:
        there = {await stack.enter_async_context(proxy(one)) for one in replicas}

        async def addresses() -> set[str]:
            return there

        proxies = Proxies(addresses)
        servicer = ImagesServicer(
            deployments=deployments, pools=pools or FakePools(), proxies=proxies, internal_token=TOKEN, max_in_work=max_in_work
        )
        descriptor = image_pb2.DESCRIPTOR.services_by_name["Images"]
        service = server.Service(descriptor=descriptor, add=image_pb2_grpc.add_ImagesServicer_to_server, servicer=servicer)
        serving = server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, grace_seconds=1)
        async with serving as bound, aio_channel(f"127.0.0.1:{bound.port}") as front:
            yield image_pb2_grpc.ImagesStub(front)
        await proxies.close()
    database.close()


@asynccontextmanager
async def proxy(replicas: FakeReplicas) -> AsyncIterator[str]:
    behind = grpc.aio.server()
    replica_pb2_grpc.add_SamplingServicer_to_server(replicas, behind)
    port = behind.add_insecure_port("127.0.0.1:0")
    await behind.start()
    yield f"127.0.0.1:{port}"
    await behind.stop(0)


async def responses(stub: Any, **fields: Any) -> list[Any]:
    return [response async for response in stub.Generate(image_pb2.GenerateRequest(**{"prompt": "a fox", **fields}), timeout=20)]


async def error_of(stub: Any, **fields: Any) -> AtelierError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await responses(stub, **fields)
    return from_call(caught.value)


async def test_a_request_reaches_the_replica_complete(tmp_path: Path) -> None:
    replicas = FakeReplicas(draws)
    async with gateway(replicas, folder=tmp_path) as stub:
        found = await responses(stub)
    assert [response.WhichOneof("part") for response in found] == ["progress", "image"]
    (sample, metadata, seconds), request = replicas.asked[0], replicas.asked[0][0].request
    assert (request.width, request.height, request.steps, request.count, request.guidance_scale) == (128, 64, 20, 1, 5.0)
    assert request.HasField("seed") and request.sampler == image_pb2.SAMPLER_EULER
    assert (sample.model, list(sample.engines)) == (f"artifacts/{'a' * 64}", ["artifacts/e"])
    assert (metadata["authorization"], metadata["application"]) == (f"Bearer {TOKEN}", "local")
    assert 10 < seconds <= 21, "the client's deadline goes along"


async def test_everything_wrong_is_named_at_once_and_no_replica_is_asked(tmp_path: Path) -> None:
    replicas = FakeReplicas(draws)
    async with gateway(replicas, folder=tmp_path) as stub:
        error = await error_of(stub, width=100, steps=51, count=9, guidance_scale=float("nan"), prompt="x" * 5000)
        unknown = await error_of(stub, sampler=77)
        missing = await error_of(stub, deployment="deployments/nobody")
    assert error.status is Status.INVALID_ARGUMENT
    assert {violation.field for violation in error.violations} == {"width", "steps", "count", "guidance_scale", "prompt"}
    assert unknown.status is Status.INVALID_ARGUMENT and "EULER_A" in unknown.message
    assert missing.status is not_found("deployment", "").status
    assert replicas.asked == []


async def test_a_replica_that_is_lost_before_a_picture_is_asked_once_more_with_the_same_seed(tmp_path: Path) -> None:
    replicas = FakeReplicas(dies, draws)
    async with gateway(replicas, folder=tmp_path) as stub:
        found = await responses(stub)
    assert found[-1].image.png == b"png"
    first, second = (sample for sample, *_ in replicas.asked)
    assert first == second


@pytest.mark.parametrize("turns", [(dies, dies), (dies_after_a_picture, draws)])
async def test_a_replica_that_stays_lost_is_unavailable_and_nothing_internal_leaks(tmp_path: Path, turns: Any) -> None:
    async with gateway(FakeReplicas(*turns), folder=tmp_path) as stub:
        error = await error_of(stub)
    assert (error.status, error.reason) == (Status.UNAVAILABLE, "REPLICA_LOST")
    assert "Traceback" not in error.message and "10.1.2.3" not in error.message


async def knows_nothing(context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.NOT_FOUND, "Application 'local' not found. Ping /ray.serve.RayServeAPIService")
    yield


@pytest.mark.parametrize("turn", [dies, knows_nothing])
async def test_the_second_try_goes_by_another_proxy(tmp_path: Path, turn: Any) -> None:
    bad, good = FakeReplicas(turn), FakeReplicas(draws)
    async with gateway(bad, good, folder=tmp_path) as stub:
        for _ in range(4):
            assert (await responses(stub))[-1].image.png == b"png"
    assert (len(bad.asked), len(good.asked)) == (2, 4), "in turn"


async def test_a_pool_that_no_proxy_knows_is_unavailable_for_now(tmp_path: Path) -> None:
    async with gateway(FakeReplicas(knows_nothing), folder=tmp_path) as stub:
        error = await error_of(stub)
    assert error.status is Status.UNAVAILABLE and error.retry_after_seconds and "Ping" not in error.message


async def test_overload_says_when_to_come_back_and_is_not_repeated(tmp_path: Path) -> None:
    replicas = FakeReplicas(is_full)
    async with gateway(replicas, folder=tmp_path) as stub:
        error = await error_of(stub)
    assert error.status is Status.RESOURCE_EXHAUSTED and error.retry_after_seconds
    assert len(replicas.asked) == 1


async def test_a_gateway_with_too_much_work_refuses_before_it_starts_more(tmp_path: Path) -> None:
    replicas = FakeReplicas(never_ends)
    async with gateway(replicas, folder=tmp_path, max_in_work=1) as stub:
        first = stub.Generate(image_pb2.GenerateRequest(prompt="a fox"))
        await first.read()
        error = await error_of(stub)
        first.cancel()
    assert error.status is Status.RESOURCE_EXHAUSTED and error.retry_after_seconds
    assert len(replicas.asked) == 1


async def test_what_a_replica_says_itself_is_passed_on(tmp_path: Path) -> None:
    async with gateway(FakeReplicas(refuses), folder=tmp_path) as stub:
        error = await error_of(stub)
    assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, "MODEL_NOT_USABLE")


async def test_a_client_that_goes_away_ends_the_call_behind(tmp_path: Path) -> None:
    replicas = FakeReplicas(never_ends)
    async with gateway(replicas, folder=tmp_path) as stub:
        call = stub.Generate(image_pb2.GenerateRequest(prompt="a fox"))
        await call.read()
        call.cancel()
        assert await asyncio.wait_for(replicas.gone.wait(), 5)


async def test_a_deployment_that_is_not_ready_says_why(tmp_path: Path) -> None:
    replicas = FakeReplicas(draws)
    async with gateway(replicas, folder=tmp_path, pools=FakePools(server_pb2.DEPLOYMENT_STATE_PENDING)) as stub:
        error = await error_of(stub)
    assert error.status is Status.UNAVAILABLE and "weights" in error.message
    assert replicas.asked == []


async def test_a_call_waits_at_the_replica_while_the_weights_are_loaded(tmp_path: Path) -> None:
    replicas = FakeReplicas(draws)
    async with gateway(replicas, folder=tmp_path, pools=FakePools(server_pb2.DEPLOYMENT_STATE_PENDING, waits=True)) as stub:
        assert (await responses(stub))[-1].image.png == b"png"
    assert list(replicas.asked[0][0].engines) == ["artifacts/f"]


@pytest.mark.parametrize("sides", [{"width": 1344, "height": 1344}, {"width": 1920, "height": 2048}])
async def test_a_picture_that_may_not_fit_into_a_message_is_refused(tmp_path: Path, sides: dict[str, int]) -> None:
    replicas = FakeReplicas(draws)
    async with gateway(replicas, folder=tmp_path) as stub:
        assert [violation.field for violation in (await error_of(stub, **sides)).violations] == ["width"]
        await responses(stub, width=1024, height=1344)
    assert len(replicas.asked) == 1


async def test_what_is_wrong_is_said_even_while_the_deployment_is_not_ready(tmp_path: Path) -> None:
    async with gateway(FakeReplicas(draws), folder=tmp_path, pools=FakePools(server_pb2.DEPLOYMENT_STATE_PENDING)) as stub:
        error = await error_of(stub, width=100)
    assert [violation.field for violation in error.violations] == ["width"]


async def test_an_early_deadline_is_the_clients_and_ends_the_call_behind(tmp_path: Path) -> None:
    replicas = FakeReplicas(never_ends)
    async with gateway(replicas, folder=tmp_path) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(image_pb2.GenerateRequest(prompt="a fox"), timeout=0.5):
                pass
        await asyncio.wait_for(replicas.gone.wait(), 5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < replicas.asked[0][2] <= 1


@pytest.mark.parametrize("turn", [is_stopped, ends_early])
async def test_a_call_that_was_ended_behind_before_its_time_is_asked_once_more(tmp_path: Path, turn: Any) -> None:
    async with gateway(FakeReplicas(turn, draws), folder=tmp_path) as stub:
        found = await responses(stub)
    assert found[-1].image.png == b"png"


async def test_a_gateway_is_free_again_after_a_client_has_gone(tmp_path: Path) -> None:
    replicas = FakeReplicas(never_ends, draws)
    async with gateway(replicas, folder=tmp_path, max_in_work=1) as stub:
        call = stub.Generate(image_pb2.GenerateRequest(prompt="a fox"))
        await call.read()
        call.cancel()
        await asyncio.wait_for(replicas.gone.wait(), 5)
        assert (await responses(stub))[-1].image.png == b"png"


async def test_a_drawn_seed_differs_from_call_to_call_and_a_given_one_stays(tmp_path: Path) -> None:
    replicas = FakeReplicas(draws)
    async with gateway(replicas, folder=tmp_path) as stub:
        for fields in ({}, {}, {"seed": 0}):
            await responses(stub, **fields)
    first, second, given = (sample.request.seed for sample, *_ in replicas.asked)
    assert first != second and given == 0
