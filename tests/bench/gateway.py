"""What the gateway and Serve's proxy add to a picture: a call through the front door beside the same work in the step loop."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import grpc

from atelier.client import Client
from atelier.demo.service import atelier_up
from atelier.rpc.channel import bearer
from atelier.v1 import image_pb2, replica_pb2, replica_pb2_grpc, server_pb2
from bench.figures import Asked, Group, Row

CALLS, QUICK_CALLS = 60, 20


def groups(asked: Asked) -> list[Group]:
    """The same request to the gateway and straight to Serve's port, in turns."""
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        os.environ["ATELIER_SERVE_PORT"] = str(port := free_port())
        with atelier_up(data, log=Path(place) / "up.txt") as address, Client(address.target, address.token) as client:
            client.deployments.create("base", server_pb2.Deployment(model="base", compile=False))
            deployment = list(client.deployments.wait("base"))[-1]
            front, behind = _measured(client, data, deployment, port, calls=QUICK_CALLS if asked.quick else CALLS)
    added = 1000 * (front - behind)
    rows = [
        Row(what="straight to Serve's port", measured=f"{1000 * behind:.1f} ms"),
        Row(what="through the gateway", measured=f"{1000 * front:.1f} ms", ratio=f"{added:+.1f} ms", goal="<= 20 ms"),
    ]
    words = (
        f"One picture of 64 pixels, one step, eager: median of {QUICK_CALLS if asked.quick else CALLS} calls each, in turns, on loopback."
    )
    return [Group(title="Gateway", words=words, rows=rows)]


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _measured(client: Client, data: Path, deployment: server_pb2.Deployment, port: int, *, calls: int) -> tuple[float, float]:
    request = image_pb2.GenerateRequest(
        deployment=deployment.name, prompt="a fox", width=64, height=64, steps=1, count=1, seed=1, guidance_scale=1.0,
        sampler=image_pb2.SAMPLER_EULER,
    )  # fmt: skip
    token = (data / "keys" / "internal-token").read_text().strip()
    metadata = (*bearer(token), ("application", deployment.pool.removeprefix("pools/")), ("multiplexed_model_id", "bench"))
    front: list[float] = []
    behind: list[float] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        sampling = replica_pb2_grpc.SamplingStub(channel)
        for turn in range(-3, calls):
            begin = time.perf_counter()
            *_, _picture = client.generate(request)
            middle = time.perf_counter()
            list(sampling.Sample(replica_pb2.SampleRequest(request=request, model=deployment.model), metadata=metadata))
            if turn >= 0:
                front.append(middle - begin)
                behind.append(time.perf_counter() - middle)
    return statistics.median(front), statistics.median(behind)
