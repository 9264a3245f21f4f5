"""Real worker processes under the reconciler: they resume, are cancelled, fail and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.rpc import status_pb2
from installation import Installation, attempts, open_installation, working

from atelier.artifacts.signing import PUBLIC
from atelier.jobs.job import ENDED, Job, State
from atelier.jobs.launcher import NICENESS, PREEMPTED_EXIT_CODE
from atelier.jobs.ledger import JobLedger
from atelier.jobs.messages import event_to_message
from atelier.jobs.submission import Submission, Work
from atelier.v1 import job_pb2, trainer_pb2


def submit(ledger: JobLedger, *, steps: int, prompt: str = "", request_id: str = "") -> str:
    request = trainer_pb2.TrainRequest(max_train_steps=steps, instance_prompt=prompt)
    submission = Submission(ledger=ledger, service="trainer", wake=lambda: None)
    return submission.submit("Train", request, request_id, Work(spec=request)).name


async def ended(ledger: JobLedger, name: str, *, seconds: float = 40) -> Job:
    end = time.monotonic() + seconds
    while (job := await asyncio.to_thread(ledger.get, name)).state not in ENDED:
        assert time.monotonic() < end, f"still {job.state}"
        await asyncio.sleep(0.05)
    return job


def events(ledger: JobLedger, name: str) -> list[job_pb2.JobEvent]:
    return [event_to_message(event) for event in ledger.events(name, after_sequence=0)[0]]


async def until_checkpoint(ledger: JobLedger, name: str, *, after: int = 0) -> None:
    end = time.monotonic() + 30
    while not any(found.step > after for found in await asyncio.to_thread(ledger.checkpoints, name)):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_a_job_ends_with_outputs_events_and_pruned_checkpoints(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=22)
    async with working(installation, tmp_path):
        job = await ended(installation.ledger, name)
    assert job.state is State.SUCCEEDED
    assert [output.role for output in job.outputs] == ["lora"]
    assert installation.catalog.get(job.outputs[0].digest).manifest.metadata["steps"] == 22
    found = events(installation.ledger, name)
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    assert [e.checkpoint.step for e in found if e.WhichOneof("event") == "checkpoint"] == [5, 10, 15, 20]
    # Full state of the last two, weights of the last three.
    kept = {c.step: [f.path for f in c.files] for c in installation.ledger.checkpoints(name)}
    full = ["optimizer.json", "weights/count.json"]
    assert kept == {10: ["weights/count.json"], 15: full, 20: full}
    assert not list((tmp_path / "workers" / "work").glob("*"))


async def test_a_killed_worker_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=20, prompt="dies")
    async with working(installation, tmp_path):
        job = await ended(installation.ledger, name)
    assert job.state is State.SUCCEEDED
    lines = [e.log.message for e in events(installation.ledger, name) if e.WhichOneof("event") == "log"]
    assert lines == ["begins at 0", "begins at 10"]
    assert any("signal 9" in e.attempt.reason for e in events(installation.ledger, name))


async def test_a_job_whose_workers_always_die_fails_after_three_attempts(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=20, prompt="always dies")
    async with working(installation, tmp_path):
        job = await ended(installation.ledger, name)
    assert job.state is State.FAILED
    assert "3 attempts" in status_pb2.Status.FromString(job.error).message


async def test_an_error_of_the_work_fails_the_job_with_its_reason(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=20, prompt="bad")
    async with working(installation, tmp_path):
        job = await ended(installation.ledger, name)
    assert (job.state, status_pb2.Status.FromString(job.error).message) == (State.FAILED, "learning_rate: is no good")


async def test_a_cancelled_job_stops_at_the_next_step(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=100_000)
    async with working(installation, tmp_path):
        await until_checkpoint(installation.ledger, name)
        assert installation.ledger.cancel(name).state is State.CANCELLING
        job = await ended(installation.ledger, name)
    assert job.state is State.CANCELLED


async def test_a_stopped_installation_goes_on_where_it_was(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=60)
    async with working(installation, tmp_path):
        await until_checkpoint(installation.ledger, name)
    assert installation.ledger.get(name).state is State.PENDING
    step = installation.ledger.checkpoints(name)[-1].step
    async with working(installation, tmp_path):
        job = await ended(installation.ledger, name)
    lines = [e.log.message for e in events(installation.ledger, name) if e.WhichOneof("event") == "log"]
    assert (job.state, lines) == (State.SUCCEEDED, ["begins at 0", f"begins at {step}"])


@contextmanager
def as_in_a_pod(installation: Installation, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker without a launcher: its standard input is closed, its output is its log."""
    environment = {
        **os.environ,
        "ATELIER_ATTEMPTS": f"127.0.0.1:{installation.attempts_port}",
        "ATELIER_PUBLIC_KEY": str(folder / "keys" / PUBLIC),
        "ATELIER_JOB": name,
        "ATELIER_JOB_TOKEN": installation.tokens.token(name),
        "ATELIER_WORKER_DIR": str(folder / "work"),
        "PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path]),
    }
    command = [sys.executable, "-m", "toys.trainer"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_worker_in_a_pod_that_is_asked_to_stop_writes_a_checkpoint_and_says_that_it_made_room(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=100_000)
    async with attempts(installation, tmp_path, told_store=""):
        with as_in_a_pod(installation, tmp_path, name) as process:
            await until_checkpoint(installation.ledger, name)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == PREEMPTED_EXIT_CODE
        step = installation.ledger.checkpoints(name)[-1].step
        with as_in_a_pod(installation, tmp_path, name) as process:  # as Kubernetes makes it anew
            await until_checkpoint(installation.ledger, name, after=step)
    lines = [e.log.message for e in events(installation.ledger, name) if e.WhichOneof("event") == "log"]
    assert lines == ["begins at 0", f"begins at {step}"] and installation.ledger.get(name).attempt == 2


async def test_the_exit_code_of_a_worker_tells_success_from_failure(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    async with attempts(installation, tmp_path):
        for prompt, code in (("", 0), ("bad", 1)):
            with as_in_a_pod(installation, tmp_path, submit(installation.ledger, steps=1, prompt=prompt)) as process:
                assert await asyncio.to_thread(process.wait, 20) == code


PARENT = """
import asyncio, sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from installation import open_installation, working

async def main():
    async with working(open_installation(Path({data!r})), Path({data!r})):
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_no_worker_survives_the_death_of_its_control_process(tmp_path: Path) -> None:
    installation = open_installation(tmp_path)
    name = submit(installation.ledger, steps=100_000)
    script = PARENT.format(folder=str(Path(__file__).parent), data=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
    await until_checkpoint(installation.ledger, name)
    assert {os.getpriority(os.PRIO_PROCESS, int(process)) for process in workers_of(name)} == {NICENESS}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while left := workers_of(name):
        assert time.monotonic() < end, left
        await asyncio.sleep(0.05)
    assert installation.ledger.get(name).state is State.RUNNING  # the next start finds it and goes on


def workers_of(name: str) -> list[str]:
    wanted = f"ATELIER_JOB={name}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:
            continue
    return found
