"""Weights and deployments that change while pictures are made, and a Ray that is not alone or does not stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
from processes import free_port
from serving import Installation, other_model, refused

from atelier.artifacts.manifest import Kind
from atelier.errors import AtelierError, Status
from atelier.rpc.channel import bearer
from atelier.v1 import image_pb2, image_pb2_grpc, server_pb2

FOREIGN = """
import sys
import ray
from ray import serve

ray.init(num_cpus=1, include_dashboard=False)

@serve.deployment
class Answer:
    def __call__(self) -> str:
        return "foreign"

serve.start(http_options={"port": int(sys.argv[1])})
answer = serve.run(Answer.bind()).remote().result()
print(len(ray.nodes()), answer, flush=True)
sys.stdin.readline()
ray.shutdown()
"""


def test_a_foreign_ray_on_the_machine_disturbs_nobody(atelier: Installation, tmp_path: Path) -> None:
    wanted, replica = atelier.picture(seed=7).png, atelier.replica()
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "foreign.txt").open("wb") as log:
        command = [sys.executable, "-c", FOREIGN, str(free_port())]
        foreign = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=tmp_path)
    assert foreign.stdin is not None and foreign.stdout is not None
    try:
        said = foreign.stdout.readline().decode().split()
        assert said == ["1", "foreign"], (tmp_path / "foreign.txt").read_text()[-2000:]
        assert atelier.picture(seed=7).png == wanted
        foreign.stdin.close()
        assert foreign.wait(timeout=60) == 0
    finally:
        foreign.kill()
        foreign.wait()
    assert replica.is_running() and atelier.picture(seed=7).png == wanted


def test_no_process_is_left_as_a_zombie(atelier: Installation) -> None:
    end = time.monotonic() + 5
    while True:
        found = []
        for process in psutil.Process(atelier.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                found += [process] if process.status() == psutil.STATUS_ZOMBIE else []
        if not found:
            return
        assert time.monotonic() < end, found
        time.sleep(0.2)


def test_an_update_swaps_the_weights_and_no_call_fails(atelier: Installation, tmp_path: Path) -> None:
    client = atelier.client
    other = client.artifacts.upload(other_model(tmp_path / "other"), kind=Kind.MODEL).name
    first = client.deployments.create("swap", server_pb2.Deployment(model="base", compile=False))
    list(client.deployments.wait("swap"))
    replica, models = atelier.replica(), []
    with grpc.insecure_channel(f"127.0.0.1:{atelier.port}") as channel:  # which repeats nothing
        stub = image_pb2_grpc.ImagesStub(channel)
        request = image_pb2.GenerateRequest(prompt="a fox", deployment="deployments/swap", steps=2, width=64, height=64, seed=1)
        metadata = bearer((atelier.data / "keys" / "token").read_text())
        for turn in range(6):
            if turn == 2:
                client.deployments.update("swap", server_pb2.Deployment(model=other), "model")
            models.append(list(stub.Generate(request, metadata=metadata, timeout=60))[-1].image.model)
    assert models == [first.model] * 2 + [other] * 4
    assert atelier.replica() == replica
    client.deployments.delete("swap")


def test_a_deployment_that_is_deleted_while_it_draws_finishes_the_picture(atelier: Installation) -> None:
    client = atelier.client
    client.deployments.create("gone", server_pb2.Deployment(model="base", compile=False))
    list(client.deployments.wait("gone"))
    request = image_pb2.GenerateRequest(prompt="a fox", deployment="deployments/gone", steps=30, width=64, height=64, seed=1)
    parts = client.generate(request)
    next(parts)
    client.deployments.delete("gone")
    *_, last = parts
    assert isinstance(last, image_pb2.GeneratedImage)
    assert refused(lambda: list(client.generate(request))).status is Status.NOT_FOUND


def test_a_ray_that_ends_is_started_again(atelier: Installation) -> None:
    wanted = atelier.picture(seed=7).png
    for process in psutil.Process(atelier.process.pid).children(recursive=True):
        if process.name() == "gcs_server":
            process.kill()
    end = time.monotonic() + 120
    while True:
        try:
            assert atelier.picture(seed=7).png == wanted
            return
        except AtelierError as error:
            assert error.status is Status.UNAVAILABLE and time.monotonic() < end, error
            time.sleep(1)
