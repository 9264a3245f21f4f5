"""The client against a server that fails as it is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from fake_atelier import FakeAtelier, ended, event, progress, serving

from atelier.artifacts.manifest import Kind
from atelier.client import Client
from atelier.client.calls import Calls
from atelier.errors import AtelierError, Status, Violation, failed_precondition, invalid, not_found, unavailable
from atelier.rpc.status import to_proto
from atelier.v1 import image_pb2, job_pb2, server_pb2, trainer_pb2

OVERLOADED = AtelierError(Status.RESOURCE_EXHAUSTED, "QUEUE_FULL", "too many requests", retry_after_seconds=7)


class Clock:
    """A clock that goes on only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def fake() -> FakeAtelier:
    return FakeAtelier()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(fake: FakeAtelier, clock: Clock, tmp_path: Path) -> Iterator[Client]:
    with serving(fake, tmp_path) as target:
        calls = Calls(target=target, sleep=clock.sleep, clock=lambda: clock.now)
        with Client(target, calls=calls) as made:
            yield made


def test_an_error_comes_back_with_reason_and_all_its_violations(client: Client, fake: FakeAtelier) -> None:
    fake.answers["Train"] = [invalid([Violation("steps", "must be positive"), Violation("rank", "must be positive")])]
    with pytest.raises(AtelierError) as caught:
        client.train(trainer_pb2.TrainRequest())
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert caught.value.reason == "INVALID_FIELDS"
    assert [v.field for v in caught.value.violations] == ["steps", "rank"]


def test_a_request_id_is_drawn_and_kept_over_repetitions(client: Client, fake: FakeAtelier) -> None:
    fake.answers["Train"] = [unavailable("RESTARTING", "soon"), job_pb2.Job(name="jobs/j1")]
    assert client.train(trainer_pb2.TrainRequest()).name == "jobs/j1"
    first, second = fake.requests("Train")
    assert first.request_id == second.request_id != ""


def test_a_given_request_id_is_left_as_it_is(client: Client, fake: FakeAtelier) -> None:
    client.train(trainer_pb2.TrainRequest(request_id="mine"))
    assert fake.requests("Train")[0].request_id == "mine"


def test_unavailable_is_not_repeated_where_a_call_might_act_twice(client: Client, fake: FakeAtelier) -> None:
    fake.answers["DeleteJob"] = [unavailable("RESTARTING", "soon")]
    with pytest.raises(AtelierError) as caught:
        client.jobs.delete("j1")
    assert caught.value.status is Status.UNAVAILABLE
    assert len(fake.requests("DeleteJob")) == 1


def test_overload_is_repeated_after_the_delay_that_the_server_names(client: Client, fake: FakeAtelier, clock: Clock) -> None:
    fake.answers["DeleteJob"] = [OVERLOADED, job_pb2.DeleteJobResponse()]
    client.jobs.delete("j1")
    assert clock.slept == [7]


def test_overload_without_a_delay_is_not_repeated(client: Client, fake: FakeAtelier, clock: Clock) -> None:
    fake.answers["GetJob"] = [AtelierError(Status.RESOURCE_EXHAUSTED, "QUEUE_FULL", "too many requests")]
    with pytest.raises(AtelierError):
        client.jobs.get("j1")
    assert clock.slept == [] and len(fake.requests("GetJob")) == 1


def test_patience_with_an_overloaded_server_ends(client: Client, fake: FakeAtelier, clock: Clock) -> None:
    fake.answers["GetJob"] = [OVERLOADED]
    with pytest.raises(AtelierError) as caught:
        client.jobs.get("j1")
    assert caught.value.reason == "QUEUE_FULL"
    assert sum(clock.slept) <= 60


@pytest.mark.parametrize(
    "error", [failed_precondition("GPU_MISMATCH", "no"), not_found("job", "j1"), AtelierError(Status.ABORTED, "X", "x")]
)
def test_other_errors_are_not_repeated(client: Client, fake: FakeAtelier, clock: Clock, error: AtelierError) -> None:
    fake.answers["GetJob"] = [error]
    with pytest.raises(AtelierError) as caught:
        client.jobs.get("j1")
    assert caught.value.status is error.status
    assert clock.slept == []


def test_a_server_that_is_not_there_is_said_so(clock: Clock) -> None:
    with Client("127.0.0.1:1", calls=Calls(target="127.0.0.1:1", sleep=clock.sleep)) as client, pytest.raises(AtelierError) as caught:
        client.jobs.get("j1")
    assert caught.value.reason == "SERVER_UNREACHABLE"
    assert "atelier up" in caught.value.message


@pytest.mark.parametrize("call", ["get", "generate"])
def test_a_server_that_has_answered_before_is_waited_for(fake: FakeAtelier, clock: Clock, tmp_path: Path, call: str) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(serving(fake, tmp_path))
        calls = Calls(target=target, sleep=clock.sleep, clock=lambda: clock.now)
        stack.enter_context(Client(target, calls=calls)).jobs.get("j1")
    with Client(target, calls=calls) as again, pytest.raises(AtelierError) as caught:
        again.jobs.get("j1") if call == "get" else list(again.generate(image_pb2.GenerateRequest(prompt="a fox")))
    assert caught.value.reason == "SERVER_UNREACHABLE" and 45 < sum(clock.slept) <= 60


def test_a_call_that_a_stopping_server_has_cancelled_is_made_again() -> None:
    class Ended(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.CANCELLED

        def details(self) -> str:
            return "CANCELLED"

        def trailing_metadata(self) -> tuple[()]:
            return ()

    turns = iter([Ended(), job_pb2.Job(name="jobs/j1")])

    def method(request: object, timeout: float | None) -> job_pb2.Job:
        turn = next(turns)
        if isinstance(turn, Ended):
            raise turn
        return turn

    calls = Calls(target="", sleep=lambda seconds: None)
    assert calls.unary(method, job_pb2.GetJobRequest(), idempotent=True).name == "jobs/j1"


def test_the_token_is_sent(fake: FakeAtelier) -> None:
    with serving(fake, token="secret") as target:
        with Client(target, "secret") as client:
            assert client.jobs.get("j1").name == "jobs/j1"
        with Client(target, "wrong") as client, pytest.raises(AtelierError) as caught:
            client.jobs.get("j1")
    assert caught.value.status is Status.UNAUTHENTICATED


def test_watch_goes_on_after_the_last_sequence_when_it_was_cut_off(client: Client, fake: FakeAtelier) -> None:
    fake.answers["WatchJob"] = [
        [progress(1, 10), progress(2, 20), unavailable("RESTARTING", "soon")],
        unavailable("RESTARTING", "soon"),
        [progress(3, 30), ended()],
    ]
    seen = list(client.jobs.watch("j1"))
    assert [response.event.sequence for response in seen] == [1, 2, 3, 0]
    assert [request.after_sequence for request in fake.requests("WatchJob")] == [0, 2, 2]


def test_watch_goes_on_when_the_server_ended_it_before_the_job(client: Client, fake: FakeAtelier) -> None:
    fake.answers["WatchJob"] = [[progress(1, 10)], [ended()]]
    assert len(list(client.jobs.watch("j1"))) == 2


def test_watch_survives_a_restart_of_the_server(fake: FakeAtelier) -> None:
    fake.answers["WatchJob"] = [[progress(1, 10)], [progress(2, 20), ended()]]
    with serving(fake) as target:
        client = Client(target)
        watched = client.jobs.watch("j1")
        assert next(watched).event.sequence == 1
    with serving(fake, port=int(target.rpartition(":")[2])), client:
        assert [response.event.sequence for response in watched] == [2, 0]


def test_watch_of_an_unknown_job_fails_at_once(client: Client, fake: FakeAtelier, clock: Clock) -> None:
    fake.answers["WatchJob"] = [not_found("job", "jobs/j1")]
    with pytest.raises(AtelierError) as caught:
        list(client.jobs.watch("j1"))
    assert caught.value.status is Status.NOT_FOUND and clock.slept == []


def test_wait_raises_why_a_job_failed(client: Client, fake: FakeAtelier) -> None:
    error = to_proto(failed_precondition("PARITY", "the engine does not agree with eager"))
    fake.answers["WatchJob"] = [[event(1, state=job_pb2.JOB_STATE_FAILED), ended(job_pb2.JOB_STATE_FAILED, error=error)]]
    with pytest.raises(AtelierError) as caught:
        client.jobs.wait("j1")
    assert caught.value.reason == "PARITY" and caught.value.status is Status.FAILED_PRECONDITION


def test_wait_says_when_a_job_was_cancelled(client: Client, fake: FakeAtelier) -> None:
    fake.answers["WatchJob"] = [[ended(job_pb2.JOB_STATE_CANCELLED)]]
    with pytest.raises(AtelierError) as caught:
        client.jobs.wait("j1")
    assert caught.value.status is Status.CANCELLED


def test_pages_are_followed_to_the_end(client: Client, fake: FakeAtelier) -> None:
    fake.answers["ListJobs"] = [
        job_pb2.ListJobsResponse(jobs=[job_pb2.Job(name="jobs/a")], next_page_token="1"),
        job_pb2.ListJobsResponse(jobs=[job_pb2.Job(name="jobs/b")]),
    ]
    assert [job.name for job in client.jobs.list()] == ["jobs/a", "jobs/b"]


def test_generate_gives_progress_and_then_pictures(client: Client, fake: FakeAtelier) -> None:
    parts = list(client.generate(image_pb2.GenerateRequest(prompt="a fox", seed=7, count=2)))
    assert isinstance(parts[0], image_pb2.GenerateProgress)
    assert [(p.index, p.seed, p.png) for p in parts[1:] if isinstance(p, image_pb2.GeneratedImage)] == [(0, 7, b"png0"), (1, 8, b"png1")]


def test_generate_draws_one_seed_for_all_its_tries(client: Client, fake: FakeAtelier) -> None:
    fake.answers["Generate"] = [[unavailable("REPLICA_LOST", "again")], fake.pictures(image_pb2.GenerateRequest())]
    list(client.generate(image_pb2.GenerateRequest(prompt="a fox")))
    first, second = fake.requests("Generate")
    assert first.HasField("seed") and first.seed == second.seed


def test_generate_is_not_repeated_once_a_picture_has_come(client: Client, fake: FakeAtelier) -> None:
    fake.answers["Generate"] = [[fake.pictures(image_pb2.GenerateRequest())[1], unavailable("REPLICA_LOST", "again")]]
    with pytest.raises(AtelierError):
        list(client.generate(image_pb2.GenerateRequest(prompt="a fox")))
    assert len(fake.requests("Generate")) == 1


def test_generate_waits_when_the_queue_is_full(client: Client, fake: FakeAtelier, clock: Clock) -> None:
    fake.answers["Generate"] = [[OVERLOADED], fake.pictures(image_pb2.GenerateRequest())]
    assert len(list(client.generate(image_pb2.GenerateRequest()))) == 2
    assert clock.slept == [7]


def test_the_time_for_a_picture_is_for_all_tries_together(client: Client, fake: FakeAtelier, clock: Clock) -> None:
    fake.answers["Generate"] = [AtelierError(Status.RESOURCE_EXHAUSTED, "OVERLOADED", "too much work", retry_after_seconds=7)]
    with pytest.raises(AtelierError) as caught:
        list(client.generate(image_pb2.GenerateRequest(), timeout_seconds=10))
    assert caught.value.reason == "OVERLOADED" and clock.slept == [7]


@pytest.mark.parametrize("token", ["two\nlines", "wröng"])
def test_what_cannot_be_a_token_is_refused(token: str) -> None:
    with pytest.raises(AtelierError, match="keys/token"):
        Client("127.0.0.1:1", token)


def test_a_deployment_is_waited_for_until_it_fails(client: Client, fake: FakeAtelier) -> None:
    states = [server_pb2.DEPLOYMENT_STATE_PENDING, server_pb2.DEPLOYMENT_STATE_FAILED]
    fake.answers["GetDeployment"] = [server_pb2.Deployment(name="deployments/a", state=s, message="no memory") for s in states]
    waiting = client.deployments.wait("a")
    assert next(waiting).state == server_pb2.DEPLOYMENT_STATE_PENDING
    with pytest.raises(AtelierError, match="no memory"):
        list(itertools.islice(waiting, 2))


def test_pictures_go_in_and_out(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "octopus"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 64)
    artifact = client.artifacts.upload(folder, tags=["octopus"])
    assert client.artifacts.get("octopus").name == artifact.name
    assert [a.name for a in client.artifacts.list(Kind.DATASET)] == [artifact.name]
    client.artifacts.download("octopus", tmp_path / "back")
    assert (tmp_path / "back" / "a.png").read_bytes() == (folder / "a.png").read_bytes()
    assert client.artifacts.read("octopus", "a.png").endswith(b"0" * 64)
    assert client.artifacts.untag("octopus").tags == []
