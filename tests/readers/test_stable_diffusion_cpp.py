"""A single file and a LoRA of ours at Stable Diffusion 1.5's size, read by stable-diffusion.cpp, which shares no code with ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from atelier.formats import lora, single_file
from atelier.formats.lora_names import Naming
from atelier.formats.tensorfile import TensorFile
from atelier.graphs.random_model import SD15, write_random_model

pytestmark = [pytest.mark.readers, pytest.mark.timeout(1800)]
HERE = Path(__file__).parent
VERSION = "0.4.7"


@pytest.fixture(scope="session")
def reader() -> Path:
    """A Python with stable-diffusion-cpp-python, built from source (minutes); kept between runs, outside the checkout."""
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atelier" / "stable-diffusion-cpp"
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", f"stable-diffusion-cpp-python=={VERSION}"], check=True)
    return python


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file of SD 1.5's shapes with CLIP's tokenizer, and a LoRA in kohya's names on UNet and text encoder."""
    folder = tmp_path_factory.mktemp("sd15")
    write_random_model(folder / "model", configs=SD15)
    shutil.rmtree(folder / "model" / "tokenizer")
    shutil.copytree(Path(str(files("atelier.formats"))) / "sd1" / "tokenizer", folder / "model" / "tokenizer")
    single_file.from_diffusers(folder / "model", folder / "single.safetensors")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        for name, weight in load_file(folder / "model" / part / f"{stem}.safetensors").items():
            if name.endswith(("to_q.weight", "to_out.0.weight", "conv1.weight", "q_proj.weight")):
                module, kernel = f"{part}.{name.removesuffix('.weight')}", weight.shape[2:]
                tensors[f"{module}.lora_A.weight"] = torch.randn(4, weight.shape[1], *kernel, generator=generator) * 0.1
                tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 4, *(1 for _ in kernel), generator=generator) * 0.1
    save_file(tensors, folder / "raw.safetensors")
    lora.save(lora.read(folder / "raw.safetensors"), folder / "loras" / "az.safetensors", Naming.WEBUI)
    shutil.rmtree(folder / "model")
    return folder


def test_a_single_file_and_a_lora_load_and_draw(reader: Path, written: Path, tmp_path: Path) -> None:
    command = [reader, HERE / "draw_cpp.py", written / "single.safetensors", written / "loras", tmp_path]
    done = subprocess.run([*map(str, command), "a fox", "a fox<lora:az:1>"], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "unknown tensor" not in said and "not in model file" not in said
    # With `alpha` tensors three a module; it says how many of them it has used.
    (applied, of) = re.findall(r"\((\d+) / (\d+)\) LoRA tensors have been applied", said)[0]
    assert applied == of and int(of) == len(TensorFile(written / "loras" / "az.safetensors").entries)
    plain, adapted = (np.asarray(Image.open(tmp_path / f"{index}.png").convert("RGB"), dtype=np.float32) for index in range(2))
    assert plain.shape == (128, 128, 3) and plain.std() > 1
    assert float(np.abs(plain - adapted).max()) > 5
