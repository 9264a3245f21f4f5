"""What lies on a disk, and in a Hugging Face cache, as artifacts."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from atelier.artifacts.importing import cached_repository, examine, hub_folder
from atelier.artifacts.manifest import Kind
from atelier.errors import AtelierError, Status

COMMIT = "0" * 40
TARGET = "base_model.model.mid_block.proj_in.lora_A.weight"


def safetensors(path: Path, name: str) -> None:
    text = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub keeps it: files are links to blobs."""
    from huggingface_hub import constants

    root = tmp_path / "hub" / "models--org--sd"
    snapshot = root / "snapshots" / COMMIT
    safetensors(root / "blobs" / "1", "conv_in.weight")
    for part in ("unet", "vae", "text_encoder"):
        (snapshot / part).mkdir(parents=True)
        (snapshot / part / "model.safetensors").symlink_to(root / "blobs" / "1")
        (snapshot / part / "config.json").write_text("{}")
    (snapshot / "model_index.json").write_text("{}")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_a_repository_comes_from_the_cache_and_its_commit_is_recorded(hub: Path, revision: str) -> None:
    found = hub_folder("org/sd", revision, allow_download=False, downloads=False)
    assert found.kind is Kind.MODEL
    assert found.metadata == {"repository": "org/sd", "revision": COMMIT}
    assert "unet/model.safetensors" in found.files


@pytest.mark.parametrize(
    ("asked", "downloads", "words"),
    [
        (False, True, "--allow-download fetches it"),
        (True, False, "ATELIER_ALLOW_DOWNLOAD"),
        (True, True, "could not be downloaded"),
    ],
)
def test_what_is_not_there_says_what_to_do(hub: Path, asked: bool, downloads: bool, words: str) -> None:
    with pytest.raises(AtelierError, match=words) as caught:
        hub_folder("org/other", "", allow_download=asked, downloads=downloads)
    assert (caught.value.status, caught.value.reason) == (Status.FAILED_PRECONDITION, "NOT_IN_HUB_CACHE")


@pytest.mark.parametrize(("repository", "revision"), [("org", ""), ("a/b/c", ""), ("../x", ""), ("org/sd", "../../x"), ("org/sd", "/x")])
def test_names_of_no_repository_are_refused(hub: Path, repository: str, revision: str) -> None:
    with pytest.raises(AtelierError) as caught:
        hub_folder(repository, revision, allow_download=True, downloads=True)
    assert caught.value.status is Status.INVALID_ARGUMENT


def test_a_cache_without_the_revision_has_nothing(hub: Path) -> None:
    assert cached_repository(hub, "org/sd", "v2") is None


@pytest.mark.parametrize("given", ["", "adapter_model.safetensors"])
def test_pefts_config_comes_along_with_its_file(tmp_path: Path, given: str) -> None:
    safetensors(tmp_path / "peft" / "adapter_model.safetensors", TARGET)
    (tmp_path / "peft" / "adapter_config.json").write_text('{"lora_alpha": 8}')
    (tmp_path / "peft" / "README.md").write_text("# a card")
    found = examine(tmp_path / "peft" / given)
    assert (found.kind, sorted(found.files)) == (Kind.LORA, ["adapter_config.json", "adapter_model.safetensors"])
