"""The main job with the four services as four processes, behind the server's one address: what Kubernetes runs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import servers
from authority import Authority
from PIL import Image
from processes import command, free_port, until_healthy

from atelier.client.client import Client
from atelier.rpc.tls import Tls
from atelier.settings import SERVICES
from atelier.v1 import compiler_pb2, converter_pb2, image_pb2, job_pb2, server_pb2, trainer_pb2


def done(client: Client, job: job_pb2.Job, role: str) -> str:
    ended = client.jobs.wait(job.name)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
    return next(output.artifact for output in ended.outputs if output.role == role)


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("atelier")


@pytest.fixture(params=[pytest.param("alone", marks=pytest.mark.slow), "for a network"])
def client(request: pytest.FixtureRequest, data: Path) -> Iterator[Client]:
    """Alone: SQLite and a folder, on loopback. For a network: Postgres, S3, and TLS in both directions on every port but the probes'."""
    tls, environment = None, {}
    if request.param == "for a network":
        authority = Authority(data / "authority")
        pair = authority.sign("atelier")
        tls = Tls(certificate=pair.certificate, key=pair.key, ca=authority.file, client_ca=authority.file)
        store = servers.new_bucket(request.getfixturevalue("s3"))
        environment = {
            "ATELIER_LEDGER": servers.new_database(request.getfixturevalue("postgres")),
            "ATELIER_STORE": store,
            **tls.as_environment(),
        }
    ports, probes = ({service: free_port() for service in SERVICES} for _ in range(2))
    shared = {"ATELIER_DATA": str(data), **environment}
    host = "localhost" if tls else "127.0.0.1"
    addresses = {f"ATELIER_{service.upper()}": f"{host}:{port}" for service, port in ports.items() if service != "server"}
    with ExitStack() as stack:
        for service, port in ports.items():
            own = {
                "ATELIER_DATA": str(data),
                "ATELIER_LISTEN": f"127.0.0.1:{port}",
                "ATELIER_HEALTH_LISTEN": f"127.0.0.1:{probes[service]}",
            }
            passed = addresses if service == "server" else {}
            stack.enter_context(command(["serve", service], log=data / f"{service}.txt", environment={**shared, **own, **passed}))
        for service, port in probes.items():
            until_healthy(port, log=data / f"{service}.txt")
        token = (data / "keys" / "token").read_text().strip()
        yield stack.enter_context(Client(f"{host}:{ports['server']}", token, tls=tls))


def test_pictures_become_a_picture(client: Client, data: Path, tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (128, 128), (90 * index, 20, 200)).save(tmp_path / f"{index}.png")
    pictures = client.artifacts.upload(tmp_path, tags=["pictures"])
    train = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA, pretrained_model_name_or_path="base", instance_data_dir=pictures.name,
        instance_prompt="a sks emoji", resolution=128, train_batch_size=1, max_train_steps=2, lr_warmup_steps=0, tags=["az"],
    )  # fmt: skip
    lora = done(client, client.train(train), "lora")
    webui = done(client, client.convert(converter_pb2.ConvertRequest(source="az", to=converter_pb2.FORMAT_LORA_WEBUI)), "lora")
    merge = converter_pb2.MergeRequest(base="base", loras=[converter_pb2.LoraRatio(lora=webui, ratio=1.0)])
    model = done(client, client.merge(merge), "model")
    compiled = compiler_pb2.CompileRequest(model=model, profile=compiler_pb2.ShapeProfile(batch_sizes=[2]))
    engine = done(client, client.compile(compiled), "engine")
    client.deployments.create("az", server_pb2.Deployment(model=model, serve_eager=False))
    deployment = list(client.deployments.wait("az"))[-1]
    pictures_made = [
        m for m in client.generate(image_pb2.GenerateRequest(deployment="az", prompt="a sks emoji", steps=4, seed=1)) if hasattr(m, "png")
    ]
    assert Image.open(io.BytesIO(pictures_made[0].png)).size == (128, 128)
    assert pictures_made[0].engine.startswith(engine)
    assert deployment.model == model
    # The lineage leads from the endpoint to the pictures.
    sources = {s.role: s.artifact for name in (model, webui, lora) for s in client.artifacts.get(name).sources}
    assert sources["dataset"] == pictures.name
    # Prompts and secrets stay out of logs.
    logs = [path for path in (*data.glob("*.txt"), *data.rglob("*.log")) if path.stat().st_size]
    secrets = [b"sks emoji", *(path.read_bytes().strip() for path in (data / "keys").glob("*token"))]
    assert len(logs) >= 5 and not [path for path in logs for secret in secrets if secret in path.read_bytes()]
