"""`atelier up` is killed with a job and a deployment: nothing is left running, and the next start goes on with both."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
from PIL import Image
from processes import command, connect, free_port, until_healthy

from atelier.client.client import Client
from atelier.v1 import image_pb2, job_pb2, server_pb2, trainer_pb2


def start_training(client: Client, folder: Path) -> str:
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", (64, 64), (90 * index, 20, 200)).save(folder / f"{index}.png")
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA, pretrained_model_name_or_path="base", instance_prompt="a sks emoji", resolution=64,
        instance_data_dir=client.artifacts.upload(folder).name, train_batch_size=1, max_train_steps=40, checkpointing_steps=5, seed=0,
        lr_warmup_steps=0,
    )  # fmt: skip
    return client.train(request).name


def until_checkpoint(client: Client, job: str) -> None:
    for event in client.jobs.watch(job):
        if getattr(event, "event", event).HasField("checkpoint"):
            return
    raise AssertionError("the job ended before it wrote a checkpoint")


def ray_folder(process: psutil.Process) -> Path | None:
    words = process.cmdline()
    return Path(words[words.index("atelier.server.ray_node") + 1]) if "atelier.server.ray_node" in words else None


def test_the_next_start_goes_on_with_jobs_and_deployments(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    arguments = ["--data", str(data), "up", "--listen", f"127.0.0.1:{port}"]
    log = tmp_path / "up.txt"
    with command(arguments, log=log) as process:
        until_healthy(port, log=log)
        with connect(port, data) as client:
            client.deployments.create("base", server_pb2.Deployment(model="base", compile=False))
            list(client.deployments.wait("base"))
            job = start_training(client, tmp_path / "pictures")
            until_checkpoint(client, job)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 5  # Ray's processes and the worker
        folder = next(place for child in children for place in [ray_folder(child)] if place)
        assert folder.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=15)
        assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
        assert not folder.exists()
    with command(arguments, log=log):
        until_healthy(port, log=log)
        with connect(port, data) as client:
            ended = client.jobs.wait(job)
            assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
            assert ended.attempts > 1
            end = time.monotonic() + 90
            while client.deployments.get("base").state != server_pb2.DEPLOYMENT_STATE_READY:
                assert time.monotonic() < end
                time.sleep(0.2)
            messages = list(client.generate(image_pb2.GenerateRequest(prompt="a fox", steps=2, width=64, height=64)))
            assert messages[-1].png.startswith(b"\x89PNG")  # type: ignore[union-attr]
