"""A replica's talk with its installation, over a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from atelier.server.reporting import Reporting
from atelier.v1 import replica_pb2, replica_pb2_grpc


class FakeReplicas(replica_pb2_grpc.ReplicasServicer):
    """Answers each report at once."""

    def __init__(self) -> None:
        self.reports: list[replica_pb2.ReportRequest] = []

    def Report(self, request: replica_pb2.ReportRequest, context: Any) -> replica_pb2.ReportResponse:
        self.reports.append(request)
        time.sleep(0.05)
        return replica_pb2.ReportResponse(models=[replica_pb2.WantedModel(model="artifacts/a")], etag="one")


@contextmanager
def server(replicas: FakeReplicas) -> Iterator[replica_pb2_grpc.ReplicasStub]:
    server = grpc.server(ThreadPoolExecutor(2))
    replica_pb2_grpc.add_ReplicasServicer_to_server(replicas, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield replica_pb2_grpc.ReplicasStub(channel)
    server.stop(0)


def test_a_replica_that_loads_a_large_model_goes_on_reporting() -> None:
    replicas, loaded, wanted = FakeReplicas(), threading.Event(), []

    def prepare(models: Any) -> bool:
        wanted.extend(models)
        return loaded.wait(20)

    with server(replicas) as stub:
        reporting = Reporting(stub, report=lambda seen: replica_pb2.ReportRequest(seen_etag=seen), prepare=prepare)
        reporting.start()
        end = time.monotonic() + 10
        while len(replicas.reports) < 5:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert [model.model for model in wanted] == ["artifacts/a"]
        assert [report.seen_etag for report in replicas.reports[:3]] == ["", "one", "one"]
        reporting.stop()
        loaded.set()


def test_what_could_not_be_made_ready_is_tried_again() -> None:
    tries, done = [], threading.Event()

    def prepare(models: Any) -> bool:
        tries.append(models)
        if len(tries) == 1:
            raise OSError("disk full")
        if len(tries) == 3:
            done.set()
        return len(tries) > 2

    with server(FakeReplicas()) as stub:
        reporting = Reporting(stub, report=lambda seen: replica_pb2.ReportRequest(), prepare=prepare, retry_seconds=0.05)
        reporting.start()
        assert done.wait(10)
        reporting.stop()
