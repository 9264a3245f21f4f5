"""Work for a thread that ends with it.

Every thread that has once computed with PyTorch keeps a team of OpenMP threads. As soon as there are more of them than processors, GNU's
OpenMP lets threads sleep between two parallel parts instead of waiting actively, in all teams: a forward of the model on board then takes
2.5 times as long (measured on two cores). So the step loop alone keeps a team; what else computes does it in a thread that passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_passing_thread(work: Callable[[], T]) -> T:
    """What `work` returns, or raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="passing")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
