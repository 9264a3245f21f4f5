"""What `atelier up` serves, and who may ask for it."""

from __future__ import annotations

import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from collector import Collector
from PIL import Image
from processes import of_folder
from serving import Installation, refused

from atelier.cli.lineage import lineage_of
from atelier.errors import Status
from atelier.rpc.channel import bearer
from atelier.rpc.status import from_call
from atelier.v1 import (
    converter_pb2,
    image_pb2,
    image_pb2_grpc,
    job_pb2,
    replica_pb2,
    replica_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    trainer_pb2,
)


def test_two_installations_draw_at_once_and_one_outlives_the_other(installations: tuple[Installation, Installation]) -> None:
    first, second = installations
    with ThreadPoolExecutor(2) as pool:
        pictures = list(pool.map(lambda one: one.picture(seed=7).png, installations))
    assert pictures[0] == pictures[1]
    second.process.send_signal(signal.SIGINT)
    second.process.wait(timeout=60)
    assert of_folder(second.data) == []
    assert first.picture(seed=7).png == pictures[0]
    assert first.replica().is_running()


def test_a_picture_is_one_trace_from_the_client_into_the_replica(atelier: Installation, traces: Collector) -> None:
    trace = secrets.token_hex(16)
    request = image_pb2.GenerateRequest(prompt="a fox nobody sees", deployment="base", steps=2, width=64, height=64)
    token = (atelier.data / "keys" / "token").read_text()
    metadata = (*bearer(token), ("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01"))
    with grpc.insecure_channel(f"127.0.0.1:{atelier.port}") as channel:
        list(image_pb2_grpc.ImagesStub(channel).Generate(request, metadata=metadata, timeout=60))
    found = {(span.service, span.kind): span for span in traces.of(trace, count=3)}
    gateway, passed, replica = found["atelier-up", 2], found["atelier-up", 3], found["atelier-replica", 2]
    assert (passed.parent, replica.parent) == (gateway.id, passed.id)
    assert passed.attributes["atelier.pool"] == "local" and replica.events == ["first step", "picture"]
    assert gateway.attributes["atelier.request_id"] == replica.attributes["atelier.request_id"]
    assert "fox" not in str(traces.spans)


def test_serves_own_port_answers_the_internal_token_alone(atelier: Installation) -> None:
    request = replica_pb2.SampleRequest(request=image_pb2.GenerateRequest(prompt="a fox", steps=1, count=1, width=64, height=64))
    public = (atelier.data / "keys" / "token").read_text()
    with grpc.insecure_channel(f"127.0.0.1:{atelier.serve_port}") as channel:
        sampling = replica_pb2_grpc.SamplingStub(channel)
        for token in ((), bearer("wrong"), bearer(public)):
            with pytest.raises(grpc.RpcError) as caught:
                list(sampling.Sample(request, metadata=(*token, ("application", "local")), timeout=20))
            error = from_call(caught.value)
            assert (error.status, error.reason) == (Status.UNAUTHENTICATED, "TOKEN_MISSING_OR_WRONG")
        # With it, a replica's own errors come through Serve's proxy with their details.
        internal = bearer((atelier.data / "keys" / "internal-token").read_text())
        request.model = f"artifacts/{'0' * 64}"
        with pytest.raises(grpc.RpcError) as caught:
            list(sampling.Sample(request, metadata=(*internal, ("application", "local")), timeout=20))
        assert from_call(caught.value).reason == "ARTIFACT_NOT_FOUND"


def test_a_client_that_goes_away_stops_its_work_within_a_step(atelier: Installation) -> None:
    replica = atelier.replica()
    request = image_pb2.GenerateRequest(prompt="a fox", deployment="base", steps=150, count=8, width=128, height=128)
    parts = atelier.client.generate(request)
    times = []
    for part in parts:
        assert isinstance(part, image_pb2.GenerateProgress)
        times.append((part.step, time.monotonic()))
        if part.step >= 4:
            break
    (first, begin), (last, end) = times[0], times[-1]
    step_seconds = (end - begin) / (last - first)
    parts.close()  # type: ignore[attr-defined]
    gone = time.monotonic()
    while busy(replica) > 0.3:
        assert time.monotonic() - gone < 3 * step_seconds + 5, f"still at work; a step takes {step_seconds:.2f} s"
    assert step_seconds * 140 > 10, "otherwise it may just have ended"
    assert atelier.picture().png.startswith(b"\x89PNG")


def busy(process: psutil.Process, *, seconds: float = 0.5) -> float:
    """Processors that it keeps busy."""
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return float((sum(process.cpu_times()[:2]) - before) / seconds)


def test_a_single_file_is_converted_served_and_stands_in_the_lineage(atelier: Installation) -> None:
    client = atelier.client
    job = client.jobs.wait(client.convert(converter_pb2.ConvertRequest(source="base", to=converter_pb2.FORMAT_SINGLE_FILE)).name)
    file = job.outputs[0].artifact
    client.deployments.create("file", server_pb2.Deployment(model=file, compile=False))
    deployment = list(client.deployments.wait("file"))[-1]
    assert deployment.model != file
    picture = atelier.picture(deployment="deployments/file", seed=3)
    assert picture.model == deployment.model
    assert picture.png == atelier.picture(seed=3).png, "the same weights came back"
    (model,) = lineage_of(client, "file").made_from
    (source,) = model.made_from
    assert [(node.kind, node.name) for node in (model, source)] == [("MODEL", deployment.model), ("SINGLE_FILE", file)]
    assert source.made_from[0].facts.startswith("base")


def test_a_request_id_is_one_request(atelier: Installation, tmp_path: Path) -> None:
    client = atelier.client
    convert = converter_pb2.ConvertRequest(request_id="r1", source="base", to=converter_pb2.FORMAT_SINGLE_FILE, file_name="one")
    Image.new("RGB", (64, 64), (200, 40, 90)).save(tmp_path / "0.png")
    train = trainer_pb2.TrainRequest(
        request_id="r1", method=trainer_pb2.METHOD_DREAMBOOTH_LORA, pretrained_model_name_or_path="base", instance_prompt="a sks emoji",
        instance_data_dir=client.artifacts.upload(tmp_path).name, resolution=64, max_train_steps=5,
    )  # fmt: skip
    converting, training = client.convert(convert), client.train(train)  # the second waits: one worker at a time
    assert (client.convert(convert).name, client.train(train).name) == (converting.name, training.name)
    convert.file_name, train.max_train_steps = "two", 6
    for call in (lambda: client.convert(convert), lambda: client.train(train)):
        error = refused(call)
        assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert client.jobs.cancel(training.name).state == job_pb2.JOB_STATE_CANCELLED
    client.jobs.wait(converting.name)


def test_a_deployments_request_id_is_one_request(atelier: Installation) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{atelier.port}") as channel:
        stub = server_pb2_grpc.ServerStub(channel)
        metadata = bearer((atelier.data / "keys" / "token").read_text())

        def create(identifier: str = "again", **fields: Any) -> server_pb2.Deployment:
            deployment = server_pb2.Deployment(model="base", compile=False, **fields)
            request = server_pb2.CreateDeploymentRequest(deployment_id=identifier, deployment=deployment, request_id="r1")
            try:
                return stub.CreateDeployment(request, metadata=metadata, timeout=20)
            except grpc.RpcError as error:
                raise from_call(error) from None

        first = create()
        assert (create().etag, create().name) == (first.etag, first.name)
        for other in (lambda: create(max_steps=7), lambda: create("another")):
            error = refused(other)
            assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert {deployment.name for deployment in atelier.client.deployments.list()} >= {"deployments/base", "deployments/again"}
    atelier.client.deployments.delete("again")
