"""What Atelier writes, read by transformers 4.57 and diffusers 0.35, which most of the field still runs: the same pictures."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.artifacts.manifest import Kind
from atelier.converter.worker import execute
from atelier.formats import lora, single_file
from atelier.formats.lora_names import Naming
from atelier.jobs.context import FolderContext
from atelier.trainer import dreambooth, dreambooth_lora
from atelier.trainer.spec import DEFAULTS, Method, make
from atelier.v1 import converter_pb2

pytestmark = pytest.mark.readers
HERE = Path(__file__).parent
LORA_VALUES = {**DEFAULTS[Method.DREAMBOOTH_LORA], "seed": 0, "instance_prompt": "x", "class_prompt": ""}


@pytest.fixture(scope="session")
def older() -> Path:
    """A Python with the older pair in front of everything else that this one has; kept between runs, outside the checkout."""
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atelier" / "readers"
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-r", HERE / "requirements.txt"], check=True)
    packages = next((place / "lib").glob("python*")) / "site-packages"
    (packages / "zz-current.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODELs by trainer, converter and merge, LoRAs by trainer and converter, a single file: all by Atelier's own writers."""
    folder = tmp_path_factory.mktemp("written")
    values = {**DEFAULTS[Method.DREAMBOOTH], "seed": 0, "instance_prompt": "x", "class_prompt": ""}
    unet = load_file(base_model.folder() / "unet" / "diffusion_pytorch_model.safetensors")
    dreambooth.save(base_model.folder(), unet, folder / "trained", spec=make(Method.DREAMBOOTH, values))
    single_file.from_diffusers(base_model.folder(), folder / "single.safetensors")
    single_file.to_diffusers(folder / "single.safetensors", folder / "converted")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in unet.items():
        if name.endswith(("to_q.weight", "to_v.weight", "to_out.0.weight")):
            module = f"unet.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(4, tensor.shape[1], generator=generator) * 0.1
            tensors[f"{module}.lora_B.weight"] = torch.randn(tensor.shape[0], 4, generator=generator) * 0.1
    trained = {name.removeprefix("unet.").replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
    dreambooth_lora.save(base_model.folder(), trained, folder / "l", spec=make(Method.DREAMBOOTH_LORA, LORA_VALUES))
    (folder / "l" / dreambooth_lora.FILE).rename(folder / "lora-trained.safetensors")
    for name, tensor in load_file(base_model.folder() / "text_encoder" / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "fc1.weight")):
            module = f"text_encoder.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(4, tensor.shape[1], generator=generator) * 0.1
            tensors[f"{module}.lora_B.weight"] = torch.randn(tensor.shape[0], 4, generator=generator) * 0.1
    save_file(tensors, folder / "raw.safetensors")
    pairs = lora.read(folder / "raw.safetensors")
    halved = {module: lora.Pair(down=pair.down, up=pair.up, alpha=2.0) for module, pair in pairs.items()}
    for naming in (Naming.DIFFUSERS, Naming.WEBUI):
        lora.save(pairs, folder / f"lora-{naming}.safetensors", naming)
        lora.save(halved, folder / f"lora-halved-{naming}.safetensors", naming)
    merge(folder, folder / "lora-diffusers.safetensors")
    return folder


def merge(folder: Path, adapter: Path) -> None:
    """The converter's own job, into `merged`; its base is as transformers 5 writes one, which the older pair does not read."""
    base, loras = folder / "newer", folder / "loras"
    shutil.copytree(base_model.folder(), base)
    text = base / "text_encoder" / "model.safetensors"
    save_file({name.removeprefix("text_model."): tensor for name, tensor in load_file(text).items()}, text)
    for name in ("vocab.json", "merges.txt"):
        (base / "tokenizer" / name).unlink()
    loras.mkdir()
    shutil.copyfile(adapter, loras / adapter.name)
    context = FolderContext(folder / "jobs")
    item = converter_pb2.LoraRatio(lora=context.add(Kind.LORA, loras), ratio=1)
    fp32 = converter_pb2.SAVE_PRECISION_FP32
    execute(converter_pb2.MergeRequest(base=context.add(Kind.MODEL, base), loras=[item], precision=fp32), context)
    shutil.copytree(context.artifact(context.outputs["model"]).folder, folder / "merged")


def draw(python: Path | str, folder: Path, out: Path, extra: Path | None) -> tuple[str, np.ndarray]:
    command = [str(python), str(HERE / "draw.py"), str(folder), str(out), *([str(extra)] if extra else [])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1], np.load(out)


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("trained", None),
        ("converted", None),
        ("merged", None),
        ("converted", "lora-trained.safetensors"),
        ("converted", "lora-diffusers.safetensors"),
        ("converted", "lora-webui.safetensors"),
        ("converted", "lora-halved-diffusers.safetensors"),
        ("converted", "lora-halved-webui.safetensors"),
        ("converted", "single.safetensors"),
    ],
)
def test_the_older_pair_draws_the_same_picture(older: Path, written: Path, tmp_path: Path, model: str, extra: str | None) -> None:
    adapter = written / extra if extra else None
    versions, theirs = draw(older, written / model, tmp_path / "theirs.npy", adapter)
    assert versions == "4.57.3 0.35.2"
    mine = written / "lora-diffusers.safetensors" if model == "merged" else None if extra == "single.safetensors" else adapter
    newer, ours = draw(sys.executable, base_model.folder(), tmp_path / "ours.npy", mine)
    assert newer != versions
    plain = draw(sys.executable, base_model.folder(), tmp_path / "plain.npy", None)[1]
    assert float(np.abs(theirs - ours).max()) < 1e-3
    assert (float(np.abs(theirs - plain).max()) > 0.05) == (mine is not None)
