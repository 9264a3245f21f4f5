"""A server made by `atelier.rpc.server`, called over real sockets."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from atelier import errors, telemetry
from atelier.rpc import auth, channel, server, status
from atelier.v1 import job_pb2, job_pb2_grpc


class Jobs(job_pb2_grpc.JobsServicer):
    """Answers by what it is asked for."""

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.Job:  # type: ignore[override]
        if request.name == "jobs/bad":
            raise errors.invalid([errors.Violation("steps", "must be positive"), errors.Violation("width", "must be a multiple of 64")])
        if request.name == "jobs/bug":
            raise RuntimeError("the password is hunter2")
        if request.name == "jobs/full":
            raise OSError(errno.ENOSPC, "No space left on device", "/a/path/of/ours")
        return job_pb2.Job(name=request.name)

    async def ListJobs(self, request: job_pb2.ListJobsRequest, context: Any) -> job_pb2.ListJobsResponse:  # type: ignore[override]
        return job_pb2.ListJobsResponse()

    async def WatchJob(self, request: job_pb2.WatchJobRequest, context: Any) -> AsyncIterator[job_pb2.WatchJobResponse]:  # type: ignore[override]
        yield job_pb2.WatchJobResponse()
        raise errors.not_found("job", request.name)

    async def CancelJob(self, request: Any, context: Any) -> job_pb2.Job:
        await asyncio.sleep(0.3)
        return job_pb2.Job(name=request.name)

    async def DeleteJob(self, request: Any, context: Any) -> job_pb2.DeleteJobResponse:
        return job_pb2.DeleteJobResponse()


def serving(authorize: Any = auth.allow_all) -> Any:
    service = server.Service(
        descriptor=job_pb2.DESCRIPTOR.services_by_name["Jobs"], add=job_pb2_grpc.add_JobsServicer_to_server, servicer=Jobs()
    )
    return server.serving("127.0.0.1:0", [service], authorize=authorize, grace_seconds=2)


async def ask(call: Callable[[grpc.Channel], Any], *, token: str = "", authorize: Any = auth.allow_all) -> Any:
    async with serving(authorize) as bound:
        with channel.channel(f"127.0.0.1:{bound.port}", token=token) as plain:
            return await asyncio.to_thread(call, plain)


def error_of(call: Callable[[], Any]) -> errors.AtelierError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return status.from_call(caught.value)


async def test_all_bad_fields_arrive_at_once_with_reason() -> None:
    error = await ask(lambda c: error_of(lambda: job_pb2_grpc.JobsStub(c).GetJob(job_pb2.GetJobRequest(name="jobs/bad"))))
    assert error.status is errors.Status.INVALID_ARGUMENT
    assert [v.field for v in error.violations] == ["steps", "width"]
    assert error.reason == "INVALID_FIELDS"


async def test_a_bug_reaches_the_log_and_not_the_client(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        error = await ask(lambda c: error_of(lambda: job_pb2_grpc.JobsStub(c).GetJob(job_pb2.GetJobRequest(name="jobs/bug"))))
    assert error.status is errors.Status.INTERNAL
    assert "hunter2" not in error.message
    assert "hunter2" in caplog.text


async def test_a_bug_is_found_in_the_log_by_what_the_client_was_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(telemetry.JsonFormatter())
    with caplog.at_level(logging.INFO):
        error = await ask(lambda c: error_of(lambda: job_pb2_grpc.JobsStub(c).GetJob(job_pb2.GetJobRequest(name="jobs/bug"))))
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    failed, ended = [line for line in lines if line.get("request_id") == error.message.split()[-1]]
    assert failed["method"] == ended["method"] == "/atelier.v1.Jobs/GetJob"
    assert "hunter2" in failed["exception"] and (ended["code"], ended["level"]) == ("INTERNAL", "INFO")


@pytest.mark.parametrize(
    ("name", "given", "kept"), [("jobs/abcd", "mine-1", True), ("jobs/bad", "mine-1", True), ("jobs/abcd", "a b", False)]
)
async def test_a_call_gets_its_id_back_the_clients_own_where_it_can_be_used(
    name: str, given: str, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def get(plain: grpc.Channel) -> dict[str, Any]:
        call: Any = job_pb2_grpc.JobsStub(plain).GetJob
        try:
            _, answer = call.with_call(job_pb2.GetJobRequest(name=name), metadata=((telemetry.REQUEST_ID, given),))
        except grpc.RpcError as error:
            answer = error
        return dict(answer.trailing_metadata())

    caplog.handler.setFormatter(telemetry.JsonFormatter())
    with caplog.at_level(logging.INFO):
        identifier = (await ask(get))[telemetry.REQUEST_ID]
    assert (identifier == given) is kept and identifier
    (line,) = [json.loads(line) for line in caplog.text.splitlines() if identifier in line]
    assert line["job"] == name if name == "jobs/abcd" else "job" not in line


async def test_a_full_disk_of_the_server_is_said_to_be_full() -> None:
    error = await ask(lambda c: error_of(lambda: job_pb2_grpc.JobsStub(c).GetJob(job_pb2.GetJobRequest(name="jobs/full"))))
    assert (error.status, error.reason) == (errors.Status.RESOURCE_EXHAUSTED, "STORAGE_FULL")
    assert "/a/path" not in error.message and error.retry_after_seconds is None


async def test_an_error_in_a_stream_comes_after_its_messages() -> None:
    def watch(plain: grpc.Channel) -> tuple[int, errors.AtelierError]:
        stream = job_pb2_grpc.JobsStub(plain).WatchJob(job_pb2.WatchJobRequest(name="jobs/x"))
        next(stream)
        return 1, error_of(lambda: next(stream))

    count, error = await ask(watch)
    assert (count, error.status, error.reason) == (1, errors.Status.NOT_FOUND, "JOB_NOT_FOUND")


async def test_an_unknown_enum_value_is_refused_naming_the_supported_ones() -> None:
    request = job_pb2.ListJobsRequest()
    request.MergeFromString(b"\x18\x63")  # field 3, state = 99
    error = await ask(lambda c: error_of(lambda: job_pb2_grpc.JobsStub(c).ListJobs(request)))
    assert error.status is errors.Status.INVALID_ARGUMENT
    assert "JOB_STATE_RUNNING" in error.message
    assert error.violations[0].field == "state"


@pytest.mark.parametrize(("token", "code"), [("", "UNAUTHENTICATED"), ("wrong", "UNAUTHENTICATED"), ("right", "OK")])
async def test_a_call_needs_the_token(token: str, code: str) -> None:
    def get(plain: grpc.Channel) -> str:
        try:
            job_pb2_grpc.JobsStub(plain).GetJob(job_pb2.GetJobRequest(name="jobs/a"))
        except grpc.RpcError as error:
            return status.from_call(error).status.name
        return "OK"

    assert await ask(get, token=token, authorize=auth.bearer_token("right")) == code


async def test_health_needs_no_token_and_names_the_service() -> None:
    request = health_pb2.HealthCheckRequest(service="atelier.v1.Jobs")
    answer = await ask(lambda c: health_pb2_grpc.HealthStub(c).Check(request), authorize=auth.bearer_token("right"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_can_be_watched() -> None:
    def watch(plain: grpc.Channel) -> Any:
        stream = health_pb2_grpc.HealthStub(plain).Watch(health_pb2.HealthCheckRequest(service="atelier.v1.Jobs"), timeout=10)
        first = next(stream)
        stream.cancel()
        return first.status

    assert await ask(watch, authorize=auth.bearer_token("right")) == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services() -> None:
    def names(plain: grpc.Channel) -> set[str]:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(reflection_pb2_grpc.ServerReflectionStub(plain).ServerReflectionInfo(iter([request])))
        return {service.name for service in answer.list_services_response.service}

    assert {"atelier.v1.Jobs", "grpc.health.v1.Health"} <= await ask(names)


async def test_a_running_call_is_answered_while_the_server_drains() -> None:
    async with serving() as bound:
        plain = channel.channel(f"127.0.0.1:{bound.port}")
        running = asyncio.create_task(asyncio.to_thread(job_pb2_grpc.JobsStub(plain).CancelJob, job_pb2.CancelJobRequest(name="jobs/a")))
        await asyncio.sleep(0.1)
    assert (await running).name == "jobs/a"
    plain.close()


async def test_a_port_in_use_is_one_clear_error() -> None:
    async with serving() as bound:
        with pytest.raises(OSError, match="cannot listen"):
            async with server.serving(f"127.0.0.1:{bound.port}", [], authorize=auth.allow_all):
                pass
