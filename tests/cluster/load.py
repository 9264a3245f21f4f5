"""A user who asks for a picture every second, with the client's normal retries, and counts what fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from atelier.client.client import Client
from atelier.errors import AtelierError
from atelier.v1 import image_pb2


@dataclass
class Told:
    """What became of the calls; `gaps` are the seconds between one picture and the next."""

    pictures: int = 0
    failures: list[str] = field(default_factory=list)
    gap_seconds: float = 0.0


@contextmanager
def steadily(client: Client, deployment: str, *, every_seconds: float = 1.0, callers: int = 1) -> Iterator[Told]:
    """Calls until the block ends; then waits for those that are out."""
    told, stop, lock = Told(), threading.Event(), threading.Lock()
    last = [time.monotonic()]

    def ask(number: int) -> None:
        request = image_pb2.GenerateRequest(deployment=deployment, prompt="a fox emoji", steps=4, seed=number)
        try:
            made = sum(isinstance(part, image_pb2.GeneratedImage) for part in client.generate(request, timeout_seconds=120))
        except AtelierError as error:
            with lock:
                told.failures.append(f"{error.status.name} {error.reason}: {error.message}")
            return
        with lock:
            told.pictures += made
            told.gap_seconds, last[0] = max(told.gap_seconds, time.monotonic() - last[0]), time.monotonic()

    def call() -> None:
        number = 0
        while not stop.is_set():
            due = time.monotonic() + every_seconds
            number += 1
            ask(number)
            stop.wait(max(0.0, due - time.monotonic()))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join()
