"""The control plane on Postgres: Get and List at a steady rate beside a training job, and List over a million jobs."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import servers

from atelier.client import Client
from atelier.demo import drawings
from atelier.demo.service import atelier_up
from atelier.rpc.channel import aio_channel, bearer
from atelier.v1 import job_pb2, job_pb2_grpc, trainer_pb2
from bench.figures import Asked, Group, Row

RATE, SECONDS, QUICK_SECONDS = 200, 30, 3
"""Calls a second, half of them Get and half List, sent when they are due whether or not the ones before were answered."""
ROWS, QUICK_ROWS = 1_000_000, 10_000
PAGES = 200


def groups(asked: Asked) -> list[Group]:
    """All on one Postgres and one `atelier up`."""
    rows_there = QUICK_ROWS if asked.quick else ROWS
    seconds = QUICK_SECONDS if asked.quick else SECONDS
    with servers.postgres() as postgres, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ |= {"ATELIER_LEDGER": (ledger := servers.new_database(postgres)), "ATELIER_SERVING": "false"}
        with atelier_up(folder / "data", log=folder / "up.txt") as address, Client(address.target, address.token) as client:
            training = start_training(client, folder)
            beside = asyncio.run(at_a_rate(address.target, address.token, training, seconds=seconds))
            client.jobs.cancel(training)
            while client.jobs.get(training).state != job_pb2.JOB_STATE_CANCELLED:
                time.sleep(0.2)
            quiet = asyncio.run(at_a_rate(address.target, address.token, training, seconds=seconds))
            fill(ledger, rows_there)
            deep = asyncio.run(pages(address.target, address.token))
    goal = "p99 <= 10 ms"
    rows = [Row(what=f"{name}, beside a training job", measured=spread(taken), goal=goal) for name, taken in beside.items()]
    rows += [Row(what=f"{name}, nothing beside it", measured=spread(taken)) for name, taken in quiet.items()]
    rows += [Row(what=f"{name}, {rows_there:,} jobs", measured=spread(taken), goal="p99 <= 20 ms") for name, taken in deep.items()]
    words = (
        f"{RATE} calls a second for {seconds} s, half GetJob and half ListJobs (pages of 50), sent when due, and counted from then; "
        "after that ListJobs one after another. Postgres, `atelier up`, the training job (its worker takes all cores) and the client share "
        "the machine."
    )
    return [Group(title="Control plane", words=words, rows=rows)]


def start_training(client: Client, folder: Path) -> str:
    """A run that goes on until it is cancelled, once it trains."""
    drawings.write_training_pictures(folder / "pictures", identifier="sks")
    pictures = client.artifacts.upload(folder / "pictures")
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA, pretrained_model_name_or_path="base", instance_data_dir=pictures.name,
        instance_prompt="a sks emoji", resolution=128, train_batch_size=1, max_train_steps=100_000, lr_warmup_steps=0,
    )  # fmt: skip
    job = client.train(request)
    while client.jobs.get(job.name).progress.phase != "training":
        time.sleep(0.2)
    return job.name


async def at_a_rate(target: str, token: str, job: str, *, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call from when it was due."""
    async with aio_channel(target) as channel:
        stub: Any = job_pb2_grpc.JobsStub(channel)
        get, listing = job_pb2.GetJobRequest(name=job), job_pb2.ListJobsRequest()
        calls: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
            ("GetJob", lambda: stub.GetJob(get, metadata=bearer(token))),
            ("ListJobs", lambda: stub.ListJobs(listing, metadata=bearer(token))),
        ]
        for _, call in calls * 20:  # the first ones open connections
            await call()
        taken: dict[str, list[float]] = {name: [] for name, _ in calls}
        began = time.perf_counter()

        async def one(number: int) -> None:
            due = began + number / RATE
            await asyncio.sleep(due - time.perf_counter())
            name, call = calls[number % len(calls)]
            await call()
            taken[name].append(time.perf_counter() - due)

        await asyncio.gather(*(one(number) for number in range(int(RATE * seconds))))
        return taken


def fill(ledger: str, count: int) -> None:
    """So many jobs that have ended, below the newest of before, as copies of one that ran."""
    with psycopg.connect(ledger, autocommit=True) as connection:
        columns = [row[0] for row in connection.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'jobs'")]
        given = {"id": "'b' || lpad(n::text, 11, '0')", "create_time": "create_time - n * interval '1 second'"}
        chosen = ", ".join(given.get(column, column) for column in columns)
        insert = (
            f"INSERT INTO jobs ({', '.join(columns)}) SELECT {chosen} FROM (SELECT * FROM jobs LIMIT 1) one, generate_series(1, {count}) n"
        )
        connection.execute(insert.encode())
        connection.execute(b"ANALYZE jobs")


async def pages(target: str, token: str) -> dict[str, list[float]]:
    """Seconds of first pages, of the pages after them, and of pages of one state."""
    async with aio_channel(target) as channel:
        stub: Any = job_pb2_grpc.JobsStub(channel)
        asks = {
            "the first page": job_pb2.ListJobsRequest(),
            "the first page of a state that few have": job_pb2.ListJobsRequest(state=job_pb2.JOB_STATE_FAILED),
        }
        taken = {name: [await timed(stub, ask, token) for _ in range(PAGES)] for name, ask in asks.items()}
        token_of, deep = "", []
        for _ in range(PAGES):
            request = job_pb2.ListJobsRequest(page_size=50, page_token=token_of)
            began = time.perf_counter()
            token_of = (await stub.ListJobs(request, metadata=bearer(token))).next_page_token
            deep.append(time.perf_counter() - began)
        return {**taken, "the pages after it": deep}


async def timed(stub: Any, request: job_pb2.ListJobsRequest, token: str) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    await stub.ListJobs(request, metadata=bearer(token))
    return time.perf_counter() - began


def spread(taken: list[float]) -> str:
    """Median and 99th percentile."""
    return f"{1000 * statistics.median(taken):.1f} ms, p99 {1000 * statistics.quantiles(taken, n=100)[98]:.1f} ms"
