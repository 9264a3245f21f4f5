"""Conversion and merge at Stable Diffusion 1.5's size, beside scripts that load everything: each in a process of its own."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Asked, Group, Row, times

ROUNDS = 3
RANK = 16
UNET = "unet/diffusion_pytorch_model.safetensors"


def groups(asked: Asked) -> list[Group]:
    """Both, in fp16."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        subprocess.run([sys.executable, "-m", __name__, "prepare", place], check=True)
        found = _measured(root, rounds=1 if asked.quick else ROUNDS)
    rows = []
    for name, words in (("convert", "diffusers folder -> one file"), ("merge", f"a LoRA of rank {RANK} on attention into the UNet")):
        for kind in (f"{name}-plain", name):
            seconds, memory = found[kind]
            goal = ""
            if kind == name:
                share = memory / found[f"{name}-plain"][1]
                goal = f">= 2x, under a third of the memory: {100 * share:.0f} %"
            whose = "ours" if kind == name else "load everything"
            ratio = times(found[f"{name}-plain"][0], seconds)
            rows.append(Row(what=f"{words}: {whose}", measured=f"{seconds:.2f} s, {memory / 1e6:.0f} MB", ratio=ratio, goal=goal))
    words = (
        "Random weights in fp16 of SD 1.5's shapes (UNet 1.7 GB). Seconds of the work itself, after imports; memory is the largest "
        "resident set of the process, libraries and mapped pages included. Files are in the page cache."
    )
    return [Group(title="Conversion and merge", words=words, rows=rows)]


def _measured(root: Path, *, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds, and the largest resident set in bytes, of every piece of work."""
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in ("convert", "convert-plain", "merge", "merge-plain")}
    for _ in range(rounds):
        for name, own in answers.items():
            done = subprocess.run([sys.executable, "-m", __name__, name, str(root)], check=True, capture_output=True, text=True)
            own.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: (statistics.median(a["seconds"] for a in own), max(a["bytes"] for a in own)) for name, own in answers.items()}


def _prepare(root: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from atelier.graphs.random_model import SD15, write_random_model

    write_random_model(root / "sd15", configs=SD15)
    unet = load_file(root / "sd15" / UNET)
    pairs = {}
    for name, weight in unet.items():
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")):
            module = f"unet.{name.removesuffix('.weight')}"
            pairs[f"{module}.lora_A.weight"] = torch.randn(RANK, weight.shape[1])
            pairs[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], RANK) * 0.01
    save_file(pairs, root / "lora.safetensors")


def _convert(root: Path) -> Callable[[], None]:
    from atelier.formats import single_file

    return lambda: single_file.from_diffusers(root / "sd15", root / "ours.safetensors")


def _convert_plain(root: Path) -> Callable[[], None]:
    from safetensors.torch import load_file, save_file

    from atelier.formats.single_file import original_name

    configs = {part: json.loads((root / "sd15" / part / "config.json").read_text()) for part in ("unet", "vae")}

    def work() -> None:
        tensors = {}
        for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
            for name, tensor in load_file(root / "sd15" / part / f"{stem}.safetensors").items():
                tensors[str(original_name(part, name, configs))] = tensor
        save_file(tensors, root / "plain.safetensors")

    return work


def _merge(root: Path) -> Callable[[], None]:
    from atelier.formats import lora, merging
    from atelier.formats.tensorfile import TensorFile, write

    def work() -> None:
        source = TensorFile(root / "sd15" / UNET)
        modules = {name: f"unet.{name.removesuffix('.weight')}" for name in source.entries}
        weighted = [merging.Weighted(pairs=lora.read(root / "lora.safetensors"), ratio=0.8)]
        write(root / "merged.safetensors", merging.merged(source, weighted, modules, dtype=None), {})

    return work


def _merge_plain(root: Path) -> Callable[[], None]:
    from safetensors.torch import load_file, save_file

    def work() -> None:
        unet, pairs = load_file(root / "sd15" / UNET), load_file(root / "lora.safetensors")
        for name, weight in unet.items():
            module = f"unet.{name.removesuffix('.weight')}"
            if f"{module}.lora_A.weight" in pairs:
                delta = pairs[f"{module}.lora_B.weight"] @ pairs[f"{module}.lora_A.weight"]
                unet[name] = (weight.float() + 0.8 * delta).to(weight.dtype)
        save_file(unet, root / "plain-merged.safetensors")

    return work


def main() -> None:
    """One piece of work in this process."""
    name, root = sys.argv[1], Path(sys.argv[2])
    if name == "prepare":
        _prepare(root)
        return
    works = {"convert": _convert, "convert-plain": _convert_plain, "merge": _merge, "merge-plain": _merge_plain}
    work = works[name](root)
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
