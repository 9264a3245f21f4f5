"""Two installations with a Ray each on one machine, started as a user starts them; all tests of this folder share them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from collector import Collector, collector
from processes import connect, until_healthy
from serving import Installation, start

from atelier.v1 import server_pb2


@pytest.fixture(scope="package")
def traces() -> Iterator[Collector]:
    """Where the installations send their spans."""
    with collector() as found:
        yield found


@pytest.fixture(scope="package")
def installations(traces: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Installation]]:
    folder = tmp_path_factory.mktemp("serving")
    with ExitStack() as stack:
        both = start(stack, folder / "a", traces.environment), start(stack, folder / "b", traces.environment)
        for one in both:
            until_healthy(one.port, log=one.data.with_suffix(".txt"))
            one.client = stack.enter_context(connect(one.port, one.data))
            one.client.deployments.create("base", server_pb2.Deployment(model="base", compile=False))
        for one in both:
            list(one.client.deployments.wait("base"))
        yield both


@pytest.fixture(scope="package")
def atelier(installations: tuple[Installation, Installation]) -> Installation:
    return installations[0]
