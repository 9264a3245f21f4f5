"""What a replica holds, over real sockets before something that plays the installation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.artifacts.importing import examine
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.messages import files_to_messages, kind_to_enum
from atelier.artifacts.signing import PUBLIC, Signer
from atelier.artifacts.store import Store
from atelier.engines.detect import detect
from atelier.errors import AtelierError
from atelier.graphs.random_model import write_random_model
from atelier.server.node import Node
from atelier.server.replica import Outbox
from atelier.server.replica_settings import ReplicaSettings
from atelier.v1 import artifact_pb2, artifact_pb2_grpc, image_pb2, replica_pb2, replica_pb2_grpc


class FakeInstallation(artifact_pb2_grpc.ArtifactsServicer, replica_pb2_grpc.ReplicasServicer):
    """Wants what it is told to want, and keeps the last report."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records: dict[str, artifact_pb2.Artifact] = {}
        self.wanted: list[str] = []
        self.engines: list[str] = []
        self.last = replica_pb2.ReportRequest()

    def add(self, folder: Path, kind: Kind | None = None, files: dict[str, Path] | None = None) -> str:
        paths = files or examine(folder).files
        found = tuple(File(path=name, size=path.stat().st_size, sha256=hash_file(path)) for name, path in sorted(paths.items()))
        for file in found:
            self.store.put_blob(paths[file.path], file)
        manifest = Manifest(kind=kind or Kind.MODEL, files=found)
        name = f"artifacts/{manifest.digest}"
        self.records[name] = artifact_pb2.Artifact(name=name, kind=kind_to_enum(manifest.kind), files=files_to_messages(found))
        return name

    def GetArtifact(self, request: artifact_pb2.GetArtifactRequest, context: Any) -> artifact_pb2.Artifact:
        if request.name not in self.records:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        return self.records[request.name]

    def Report(self, request: replica_pb2.ReportRequest, context: Any) -> replica_pb2.ReportResponse:
        self.last = request
        models = [replica_pb2.WantedModel(model=name, engines=self.engines) for name in self.wanted]
        time.sleep(0.05)
        return replica_pb2.ReportResponse(models=models, etag=str(self.wanted))

    def until(self, condition: Callable[[dict[str, replica_pb2.ReplicaModel]], bool]) -> dict[str, replica_pb2.ReplicaModel]:
        end = time.monotonic() + 60
        while not condition(found := {model.model: model for model in self.last.models}):
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("node") / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        write_random_model(folder, seed=seed)
    return folders


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[FakeInstallation]:
    installation = FakeInstallation(Store.open(f"file://{tmp_path / 'store'}"))
    server = grpc.server(ThreadPoolExecutor(4))
    artifact_pb2_grpc.add_ArtifactsServicer_to_server(installation, server)
    replica_pb2_grpc.add_ReplicasServicer_to_server(installation, server)
    installation.port = server.add_insecure_port("127.0.0.1:0")  # type: ignore[attr-defined]
    server.start()
    yield installation
    server.stop(0)


@pytest.fixture
def node(installation: FakeInstallation, tmp_path: Path) -> Iterator[Node]:
    Signer.open(tmp_path / "keys")
    stale = tmp_path / "cache" / ("0" * 64)
    stale.mkdir(parents=True)
    target = f"127.0.0.1:{installation.port}"  # type: ignore[attr-defined]
    settings = ReplicaSettings(
        pool="local", gpu=detect().label, internal_target=target, internal_token_file="", public_key=str(tmp_path / "keys" / PUBLIC),
        cache=str(tmp_path / "cache"), store_url=installation.store.url, threads=1,
    )  # fmt: skip
    node = Node(settings, token="t", replica="r")
    assert not stale.exists(), "an artifact that was deleted leaves the cache"
    yield node
    node.stop()


def test_a_node_whose_label_names_another_product_does_not_start(tmp_path: Path) -> None:
    settings = ReplicaSettings(pool="fast", gpu="NVIDIA-A10", internal_target="", internal_token_file="", public_key="", cache="")
    with pytest.raises(AtelierError, match="pools/fast is for NVIDIA-A10, and this node has"):
        Node(settings, token="t", replica="r")


def test_a_model_that_cannot_be_loaded_holds_no_other_up(
    node: Node, installation: FakeInstallation, models: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken" / "unet").mkdir(parents=True)
    (tmp_path / "broken" / "unet" / "config.json").write_text("{}")
    bad = installation.add(tmp_path, files={"unet/config.json": tmp_path / "broken" / "unet" / "config.json"})
    good = installation.add(models[0])
    installation.wanted = [bad, good]
    found = installation.until(lambda found: len(found) == 2)
    assert found[bad].error and not found[good].error


def test_what_is_no_longer_wanted_is_let_go(node: Node, installation: FakeInstallation, models: list[Path]) -> None:
    first, second = (installation.add(folder) for folder in models)
    installation.wanted = [first]
    installation.until(lambda found: first in found)
    installation.wanted = [second]
    installation.until(lambda found: list(found) == [second])
    assert node.held(first, []) is None and node.held(second, []) is not None


def test_an_engine_that_nobody_signed_is_not_loaded_and_the_model_is_served(
    node: Node, installation: FakeInstallation, models: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "model.xml").write_text("<net/>")
    installation.engines = [installation.add(tmp_path, kind=Kind.ENGINE, files={"unet/model.xml": tmp_path / "model.xml"})]
    name = installation.add(models[0])
    installation.wanted = [name]
    found = installation.until(lambda found: name in found and installation.engines[0] in found)
    assert found[installation.engines[0]].error and found[name].engine_artifact == ""


async def test_a_picture_comes_out_with_the_seed_that_gives_it_alone(
    node: Node, installation: FakeInstallation, models: list[Path]
) -> None:
    name = installation.add(models[0])
    variant = await asyncio.to_thread(node.variant, name, [])
    outbox = Outbox(asyncio.get_running_loop())
    request = image_pb2.GenerateRequest(
        prompt="a fox", width=64, height=64, steps=2, count=2, seed=2**32 - 1, sampler=image_pb2.SAMPLER_EULER
    )
    with pytest.raises(AtelierError, match="never served eager"):
        node.submit(request, variant, outbox, never_eager=True)
    node.submit(request, variant, outbox)
    responses = []
    while (response := await outbox.next()) is not None:
        responses.append(response)
    images = [response.image for response in responses if response.HasField("image")]
    assert [(image.index, image.seed, image.model, image.engine) for image in images] == [
        (0, 2**32 - 1, name, "eager"),
        (1, 0, name, "eager"),
    ]
