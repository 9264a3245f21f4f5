"""The Artifacts service over a real port, with the Python client: what comes in, what is refused, what is found again."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from atelier import base_model
from atelier.artifacts.catalog import Catalog
from atelier.artifacts.manifest import Kind
from atelier.artifacts.servicer import ArtifactsServicer
from atelier.artifacts.spool import Spool
from atelier.artifacts.store import Store
from atelier.client.client import Client
from atelier.errors import AtelierError, Status
from atelier.ledger import ArtifactUse, Database
from atelier.migrations import migrate
from atelier.rpc import auth, server
from atelier.v1 import artifact_pb2, artifact_pb2_grpc


class World:
    def __init__(self, folder: Path, url: str) -> None:
        self.database = Database(f"sqlite:///{folder}/ledger.db")
        migrate(self.database)
        self.store = Store.open(url)
        self.catalog = Catalog(store=self.store, database=self.database)
        self.spool = Spool(folder / "spool")
        self.servicer = ArtifactsServicer(catalog=self.catalog, spool=self.spool, import_roots=[folder / "allowed"])
        self.port = 0

    async def ask(self, call: Callable[[Client], Any]) -> Any:
        def work() -> Any:
            with Client(f"127.0.0.1:{self.port}") as client:
                return call(client)

        return await asyncio.to_thread(work)

    async def refused(self, call: Callable[[Client], Any]) -> AtelierError:
        with pytest.raises(AtelierError) as caught:
            await self.ask(call)
        return caught.value


@pytest.fixture
async def world(store_url: str, tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, store_url)
    descriptor = artifact_pb2.DESCRIPTOR.services_by_name["Artifacts"]
    service = server.Service(descriptor=descriptor, add=artifact_pb2_grpc.add_ArtifactsServicer_to_server, servicer=world.servicer)
    async with server.serving("127.0.0.1:0", [service], authorize=auth.allow_all, grace_seconds=1) as bound:
        world.port = bound.port
        yield world


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (32, 32), (80 * index, 0, 0)).save(folder / f"{index}.png")
    return folder


async def test_a_folder_comes_in_and_out_bit_for_bit(world: World, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    artifact = await world.ask(lambda c: c.artifacts.upload(folder, tags=["mine"]))
    assert artifact_pb2.ArtifactKind.Name(artifact.kind) == "ARTIFACT_KIND_DATASET"
    await world.ask(lambda c: c.artifacts.download("mine", tmp_path / "out"))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    again = await world.ask(lambda c: c.artifacts.upload(folder))
    assert (again.name, list(again.tags)) == (artifact.name, ["mine:latest"])


async def test_a_model_a_lora_and_a_single_file_are_told_by_content(world: World, tmp_path: Path) -> None:
    model = await world.ask(lambda c: c.artifacts.upload(base_model.folder()))
    save_file({"unet.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "any.safetensors")
    lora = await world.ask(lambda c: c.artifacts.upload(tmp_path / "any.safetensors"))
    save_file({"model.diffusion_model.x": torch.ones(2, 2)}, tmp_path / "one.safetensors")
    single = await world.ask(lambda c: c.artifacts.upload(tmp_path / "one.safetensors"))
    kinds = [artifact_pb2.ArtifactKind.Name(a.kind).removeprefix("ARTIFACT_KIND_") for a in (model, lora, single)]
    assert kinds == ["MODEL", "LORA", "SINGLE_FILE"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
async def test_a_pickle_by_another_name_is_refused_and_nothing_stays(world: World, tmp_path: Path, protocol: int) -> None:
    (tmp_path / "lora.safetensors").write_bytes(pickle.dumps({"a": [1.0]}, protocol=protocol))
    error = await world.refused(lambda c: c.artifacts.upload(tmp_path / "lora.safetensors", kind=Kind.LORA))
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, "UNSAFE_FORMAT")
    assert "LEGACY" in error.message
    assert list((tmp_path / "spool").iterdir()) == []
    assert (await world.ask(lambda c: list(c.artifacts.list()))) == []


async def test_a_torch_pickle_and_torchscript_enter_as_legacy_only(world: World, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / "b.safetensors"))
    for name, word in (("a", "pickle"), ("b", "TorchScript")):
        path = tmp_path / f"{name}.safetensors"
        error = await world.refused(lambda c, path=path: c.artifacts.upload(path, kind=Kind.SINGLE_FILE))
        assert word in error.message
        legacy = await world.ask(lambda c, path=path: c.artifacts.upload(path, kind=Kind.LEGACY))
        assert artifact_pb2.ArtifactKind.Name(legacy.kind) == "ARTIFACT_KIND_LEGACY"


@pytest.mark.parametrize("kind", [Kind.ENGINE, Kind.TORCHSCRIPT, Kind.TRAINING_ENGINE, Kind.RUN])
async def test_what_only_jobs_make_is_refused_before_its_bytes(world: World, tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x7fELF" + b"0" * 100)
    error = await world.refused(lambda c: c.artifacts.upload(tmp_path / "x.bin", kind=kind))
    assert error.reason == "KIND_NOT_UPLOADABLE"


async def test_bad_files_are_all_named(world: World, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    (folder / "a.png").write_bytes(b"\x7fELF" + b"0" * 50)
    (folder / "b.png").write_bytes(pickle.dumps([1]))
    error = await world.refused(lambda c: c.artifacts.upload(folder, kind=Kind.DATASET))
    assert {v.field for v in error.violations} == {"files[a.png]", "files[b.png]"}


async def test_an_upload_goes_on_where_it_was_cut_off(world: World, tmp_path: Path) -> None:
    from atelier.artifacts.manifest import File, hash_file

    path = tmp_path / "big.safetensors"
    save_file({"model.diffusion_model.x": torch.randn(700_000)}, path)
    file = File(path=path.name, size=path.stat().st_size, sha256=hash_file(path))
    world.spool.write(file, 0, path.read_bytes()[:1_000_000])
    sent: list[int] = []
    await world.ask(lambda c: c.artifacts.upload(path, progress=lambda done, total: sent.append(done)))
    assert sent[0] > 1_000_000


async def test_a_damaged_blob_is_data_loss(world: World, tmp_path: Path) -> None:
    artifact = await world.ask(lambda c: c.artifacts.upload(pictures(tmp_path / "in")))
    key = f"blobs/{artifact.files[0].sha256[:2]}/{artifact.files[0].sha256}"
    world.store.delete(key)
    world.store.put_object(key, b"x" * artifact.files[0].size)
    error = await world.refused(lambda c: c.artifacts.download(artifact.name, tmp_path / "out"))
    assert error.status is Status.DATA_LOSS
    with pytest.raises(AtelierError):
        world.store.materialize(world.catalog.get(artifact.name).manifest, tmp_path / "again")


async def test_what_is_in_use_is_not_deleted(world: World, tmp_path: Path) -> None:
    artifact = await world.ask(lambda c: c.artifacts.upload(pictures(tmp_path / "in")))
    with world.database.transaction() as session:
        session.add(ArtifactUse(user="deployments/az", digest=artifact.name.removeprefix("artifacts/")))
    error = await world.refused(lambda c: c.artifacts.delete(artifact.name))
    assert (error.status, "deployments/az" in error.message) == (Status.FAILED_PRECONDITION, True)


async def test_names_and_tags(world: World, tmp_path: Path) -> None:
    artifact = await world.ask(lambda c: c.artifacts.upload(pictures(tmp_path / "in"), tags=["az-octopus"]))
    digest = artifact.name.removeprefix("artifacts/")
    for name in (artifact.name, digest, digest[:10], "az-octopus", "az-octopus:latest"):
        assert (await world.ask(lambda c, name=name: c.artifacts.get(name))).name == artifact.name
    assert (await world.refused(lambda c: c.artifacts.get("nothing-here"))).status is Status.NOT_FOUND
    assert (await world.refused(lambda c: c.artifacts.tag("../up", artifact.name))).status is Status.INVALID_ARGUMENT


async def test_import_stays_below_the_allowed_folders(world: World, tmp_path: Path) -> None:
    allowed = pictures(tmp_path / "allowed")
    other = pictures(tmp_path / "other")
    (allowed / "link").symlink_to(other)
    assert (await world.ask(lambda c: c.artifacts.import_(str(allowed)))).size_bytes > 0
    for source in (other, allowed / "link", allowed / ".." / "other"):
        error = await world.refused(lambda c, source=source: c.artifacts.import_(str(source)))
        assert error.status is Status.INVALID_ARGUMENT


async def test_facts_that_are_no_json_and_sources_that_may_move_are_refused(world: World, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    moving = [artifact_pb2.ArtifactSource(role="base", artifact="base")]
    nan = await world.refused(lambda c: c.artifacts.upload(folder, metadata={"loss": float("nan")}))
    source = await world.refused(lambda c: c.artifacts.upload(folder, sources=moving))
    assert (nan.status, source.status) == (Status.INVALID_ARGUMENT, Status.INVALID_ARGUMENT)
    assert [violation.field for violation in source.violations] == ["sources[0].artifact"]
    assert (await world.ask(lambda c: list(c.artifacts.list()))) == []
