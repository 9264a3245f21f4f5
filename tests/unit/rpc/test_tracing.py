"""What a collector gets of calls: the client's trace goes on, failures are told from refusals, and nothing is traced unasked."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from collector import Collector, collector

from atelier import errors, tracing
from atelier.rpc import auth, channel, server
from atelier.server.passing import PassThrough
from atelier.v1 import job_pb2, job_pb2_grpc, trainer_pb2, trainer_pb2_grpc


class Jobs(job_pb2_grpc.JobsServicer):
    """Answers by what it is asked for."""

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        if request.name == "jobs/none":
            raise errors.not_found("job", request.name)
        if request.name == "jobs/buggy":
            raise RuntimeError
        return job_pb2.Job(name=request.name)


class Trainer(trainer_pb2_grpc.TrainerServicer):
    """Tells the call's `traceparent`."""

    async def Train(self, request: trainer_pb2.TrainRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        return job_pb2.Job(name=dict(context.invocation_metadata())["traceparent"])


JOBS = server.Service(descriptor=job_pb2.DESCRIPTOR.services_by_name["Jobs"], add=job_pb2_grpc.add_JobsServicer_to_server, servicer=Jobs())
TRAINER = server.Service(
    descriptor=trainer_pb2.DESCRIPTOR.services_by_name["Trainer"], add=trainer_pb2_grpc.add_TrainerServicer_to_server, servicer=Trainer()
)


@asynccontextmanager
async def jobs() -> AsyncIterator[grpc.aio.Channel]:
    serving = server.serving("127.0.0.1:0", [JOBS], authorize=auth.allow_all)
    async with serving as bound, channel.aio_channel(f"127.0.0.1:{bound.port}") as to:
        yield to


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """This process is traced."""
    with collector() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        end = tracing.begin("test", found.environment)
        yield found
        end()


def client() -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """A client's trace and span, and the metadata that name them."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, (("traceparent", f"00-{trace}-{span}-01"),)


@pytest.mark.parametrize(("name", "code", "failed"), [("jobs/abcd", 0, False), ("jobs/none", 5, False), ("jobs/buggy", 13, True)])
async def test_a_call_is_a_span_of_the_clients_trace(traced: Collector, name: str, code: int, failed: bool) -> None:
    trace, span, metadata = client()
    async with (
        server.serving("127.0.0.1:0", [JOBS], authorize=auth.allow_all) as bound,
        channel.aio_channel(f"127.0.0.1:{bound.port}") as to,
    ):
        try:
            await job_pb2_grpc.JobsStub(to).GetJob(job_pb2.GetJobRequest(name=name), metadata=(*metadata, ("x-request-id", "mine")))
        except grpc.aio.AioRpcError:
            assert code
    (found,) = await asyncio.to_thread(traced.of, trace, count=1)
    assert (found.service, found.name, found.kind, found.parent) == ("atelier-test", "atelier.v1.Jobs/GetJob", 2, span)
    assert found.attributes["rpc.grpc.status_code"] == code and found.failed is failed
    assert found.attributes["atelier.request_id"] == "mine" and found.attributes["atelier.job"] == name


async def test_a_call_that_is_passed_on_stays_in_its_trace(traced: Collector) -> None:
    trace, span, metadata = client()
    async with server.serving("127.0.0.1:0", [TRAINER], authorize=auth.allow_all) as behind:
        passed = PassThrough({"Trainer": f"127.0.0.1:{behind.port}"})
        async with (
            server.serving("127.0.0.1:0", [], authorize=auth.allow_all, handlers=[passed]) as front,
            channel.aio_channel(f"127.0.0.1:{front.port}") as to,
        ):
            answer = await trainer_pb2_grpc.TrainerStub(to).Train(trainer_pb2.TrainRequest(), metadata=metadata)
        await passed.close()
    found = {one.id: one for one in await asyncio.to_thread(traced.of, trace, count=3)}
    inner = next(one for one in found.values() if one.parent in found and found[one.parent].kind == 3)
    outer = found[inner.parent]
    assert answer.name == f"00-{trace}-{outer.id}-01"
    assert (inner.kind, outer.name, found[outer.parent].parent) == (2, "atelier.v1.Trainer/Train", span)


async def test_what_comes_all_the_time_is_not_traced(traced: Collector) -> None:
    async with (
        server.serving("127.0.0.1:0", [JOBS], authorize=auth.allow_all) as bound,
        channel.aio_channel(f"127.0.0.1:{bound.port}") as to,
    ):
        check: Any = to.unary_unary("/grpc.health.v1.Health/Check")
        await check(b"")
        trace, _, metadata = client()
        await job_pb2_grpc.JobsStub(to).GetJob(job_pb2.GetJobRequest(name="jobs/abcd"), metadata=metadata)
    await asyncio.to_thread(traced.of, trace, count=1)
    assert len(traced.spans) == 1


def test_without_a_collector_there_are_no_spans_and_the_sdk_is_not_even_imported() -> None:
    script = """
import sys
import atelier.control
from atelier import tracing
tracing.begin("test", {"OTEL_EXPORTER_OTLP_ENDPOINT": ""})()
with tracing.span("one", kind="client") as span:
    span.say({"rpc.system": "grpc"}), span.event("now"), span.fail("UNKNOWN")
    assert span.metadata == ()
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_collector_without_the_sdk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atelier.spans", None)
    with pytest.raises(errors.AtelierError, match=r"atelier\[tracing\]"):
        tracing.begin("test", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"})
