"""Log lines: what they say, and whose they are."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier import telemetry

logger = logging.getLogger("atelier.test")


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Any]:
    """Gives what was logged as JSON so far."""
    path = tmp_path / "log"
    undo = telemetry.log_into(path, as_json=True, logger="atelier.test")
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    undo()


async def in_a_call(request_id: str, method: str = "/atelier.v1.Jobs/GetJob", job: str = "") -> str:
    chosen = telemetry.begin_call(method, request_id)
    telemetry.about_job(job)
    await asyncio.to_thread(logger.info, "looked it up")
    return chosen


def test_a_line_outside_of_any_call_has_no_empty_fields(lines: Any) -> None:
    logger.warning("two\nlines of %s", "text")
    (line,) = lines()
    assert line.pop("time").endswith("Z") and line == {"level": "WARNING", "logger": "atelier.test", "message": "two\nlines of text"}


async def test_lines_of_calls_at_the_same_time_are_told_apart_in_threads_too(lines: Any) -> None:
    await asyncio.gather(in_a_call("one", job="jobs/abcd"), in_a_call("two", "/atelier.v1.Jobs/ListJobs"))
    found = {line["request_id"]: (line["method"], line.get("job")) for line in lines()}
    assert found == {"one": ("/atelier.v1.Jobs/GetJob", "jobs/abcd"), "two": ("/atelier.v1.Jobs/ListJobs", None)}


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\nb", "ä", '"}'])
async def test_a_request_id_that_cannot_be_used_is_drawn_anew(given: str) -> None:
    chosen = await asyncio.create_task(in_a_call(given))
    assert chosen != given and len(chosen) == 16


async def test_what_is_no_job_is_not_taken_for_one(lines: Any) -> None:
    await asyncio.create_task(in_a_call("one", job="jobs/../secret"))
    assert "job" not in lines()[0]


def test_a_line_that_names_a_job_has_it_as_a_field(lines: Any) -> None:
    logger.info("%s: starting a worker", "jobs/0a1b2c3d4e5f")
    logger.info("see jobs/ for more")
    assert [line.get("job") for line in lines()] == ["jobs/0a1b2c3d4e5f", None]


def test_an_exception_is_one_field(lines: Any) -> None:
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        logger.exception("it failed")
    (line,) = lines()
    assert line["message"] == "it failed" and "ValueError: no\nsuch thing" in line["exception"] and "Traceback" in line["exception"]


def test_figures_of_a_line_are_fields(lines: Any) -> None:
    logger.info("done", extra={"code": "OK", "seconds": 0.25})
    assert (lines()[0]["code"], lines()[0]["seconds"]) == ("OK", 0.25)


async def test_text_names_the_call_at_the_end_of_the_line(tmp_path: Path) -> None:
    undo = telemetry.log_into(tmp_path / "log", as_json=False, logger="atelier.test")
    logger.info("before")
    await asyncio.create_task(in_a_call("abc"))
    undo()
    logger.info("after")
    before, within = (tmp_path / "log").read_text().splitlines()
    assert before.endswith("INFO atelier.test: before") and within.endswith("INFO atelier.test: looked it up (request abc)")


def test_undoing_leaves_loggers_as_they_were(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers), warnings.showwarning
    telemetry.log_into(tmp_path / "log", as_json=True)()
    assert (root.level, list(root.handlers), warnings.showwarning) == before and logger.propagate


@pytest.mark.parametrize(("value", "as_json"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_a_worker_says_what_it_does_on_standard_error(value: str, as_json: bool) -> None:
    program = (
        "import os, logging; from atelier import telemetry; telemetry.log_of_worker(os.environ); logging.getLogger('a').info('at work')"
    )
    environment = {"ATELIER_LOG_JSON": value, "ATELIER_JOB": "jobs/0a1b2c3d4e5f"}
    line = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True).stderr
    assert line.endswith("INFO a: at work\n") if not as_json else json.loads(line)["job"] == "jobs/0a1b2c3d4e5f"
