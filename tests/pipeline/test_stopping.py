"""Processes that are asked to stop while they are in use: nobody who repeats calls as the client does sees a failure."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from front import front, health
from loopback import until
from processes import command, connect, free_port, until_healthy

from atelier.jobs.events import log_event
from atelier.jobs.job import NewJob, State
from atelier.jobs.ledger import JobLedger
from atelier.ledger import Database
from atelier.settings import read
from atelier.v1 import image_pb2, server_pb2

DRAIN_SECONDS = 8


@dataclass(kw_only=True)
class Service:
    """`atelier serve`."""

    process: subprocess.Popen[bytes]
    port: int
    probe: int
    metrics: int
    log: Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def services(data: Path) -> Iterator[list[Service]]:
    """Two that both answer for all jobs of one ledger."""
    with ExitStack() as stack:
        found = []
        for name in ("trainer", "converter"):
            port, probe, metrics = free_port(), free_port(), free_port()
            environment = {
                "ATELIER_DATA": str(data), "ATELIER_LISTEN": f"127.0.0.1:{port}", "ATELIER_HEALTH_LISTEN": f"127.0.0.1:{probe}",
                "ATELIER_METRICS_LISTEN": f"127.0.0.1:{metrics}", "ATELIER_DRAIN_SECONDS": str(DRAIN_SECONDS), "ATELIER_LOG_JSON": "true",
            }  # fmt: skip
            log = data.with_name(f"{name}.txt")
            process = stack.enter_context(command(["serve", name], log=log, environment=environment))
            until_healthy(probe, log=log)
            found.append(Service(process=process, port=port, probe=probe, metrics=metrics, log=log))
        yield found


def test_what_watches_and_asks_goes_on_elsewhere_while_one_of_two_processes_stops(services: list[Service], data: Path) -> None:
    database = Database(read(data=data).ledger_url)
    ledger = JobLedger(database)
    job = ledger.submit(NewJob(service="nobody's", method="M", request_id="", body_sha256="", spec=b"")).name
    attempt = ledger.claim(job).attempt
    first, second = services
    seen: list[int] = []
    answers = 0
    done = threading.Event()
    failures: list[BaseException] = []
    with front({first.port: first.probe, second.port: second.probe}) as port:

        def watch() -> None:
            try:
                with connect(port, data) as client:
                    seen.extend(response.event.sequence for response in client.jobs.watch(job) if response.HasField("event"))
            except BaseException as error:
                failures.append(error)

        def ask() -> None:
            nonlocal answers
            try:
                with connect(port, data) as client:
                    while not done.is_set():
                        answers += client.jobs.get(job).name == job
                        time.sleep(0.02)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for work in (watch, ask)]
        for thread in threads:
            thread.start()
        until(lambda: (len(seen) > 0 and answers > 0) or bool(failures), seconds=60)

        asked = time.monotonic()
        first.process.send_signal(signal.SIGTERM)
        until(lambda: health(first.probe) == "NOT_SERVING", seconds=60)
        assert health(first.port) == "NOT_SERVING" and first.process.poll() is None
        with connect(first.port, data) as client:  # whoever has not heard of it
            assert client.jobs.get(job).name == job
        assert time.monotonic() - asked < DRAIN_SECONDS, "this machine is too slow for this test"
        assert first.process.wait(timeout=60) == 0
        assert time.monotonic() - asked >= DRAIN_SECONDS

        before = answers
        ledger.append(job, attempt, [log_event("said after the first had gone")])
        ledger.complete(job, attempt, state=State.SUCCEEDED)
        threads[0].join(timeout=60)
        until(lambda: answers > before + 10 or bool(failures), seconds=60)
        done.set()
        threads[1].join(timeout=60)
    assert failures == []
    assert seen == list(range(1, ledger.get(job).last_sequence + 1))
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{second.metrics}/metrics").read().decode()
    assert 'atelier_rpc_requests_total{grpc_code="OK",grpc_method="WatchJob",grpc_service="atelier.v1.Jobs"} 1.0' in metrics
    assert 'atelier_jobs{component="converter",state="PENDING"} 0.0' in metrics
    database.close()
    lines = [json.loads(line) for line in first.log.read_text().splitlines()]
    ended = [line for line in lines if line.get("method") == "/atelier.v1.Jobs/WatchJob"]
    assert [line["code"] for line in ended] == ["UNAVAILABLE"] and ended[0]["job"] == job and ended[0]["request_id"]


def test_pictures_that_are_being_made_are_sent_before_the_process_ends(data: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "up.txt"
    arguments = ["--data", str(data), "up", "--listen", f"127.0.0.1:{port}"]
    with command(arguments, log=log, environment={"ATELIER_GRACE_SECONDS": "60"}) as process:
        until_healthy(port, log=log)
        with connect(port, data) as client:
            client.deployments.create("base", server_pb2.Deployment(model="base", compile=False))
            list(client.deployments.wait("base"))
            request = image_pb2.GenerateRequest(deployment="base", prompt="a fox", steps=60, seed=1, width=64, height=64)
            answer = client.generate(request)
            step = next(answer)
            assert isinstance(step, image_pb2.GenerateProgress) and step.step < 60
            process.send_signal(signal.SIGTERM)
            *_, last = answer
        assert isinstance(last, image_pb2.GeneratedImage) and last.png
        assert process.wait(timeout=60) == 0


def test_a_process_that_is_asked_to_stop_while_it_starts_does_so(data: Path, tmp_path: Path) -> None:
    with command(["--data", str(data), "up", "--listen", "127.0.0.1:0"], log=tmp_path / "up.txt") as process:
        until(lambda: (data / "ledger.db").exists(), seconds=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert "answers at" not in (tmp_path / "up.txt").read_text()
