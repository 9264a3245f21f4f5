"""DreamBooth-LoRA beside diffusers' script and beside a plain loop over cached latents: steps a second, start-up left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atelier import base_model
from atelier.demo.drawings import OTHERS, SEEN, picture
from atelier.jobs.launcher import JEMALLOC
from bench.figures import Group, Row

BATCH, SIDE, RANK = 4, 128, 16
SHORT, LONG = 4, 44
FLAGS: dict[str, Any] = {
    "instance_prompt": "a sks emoji", "class_prompt": "a noto emoji", "with_prior_preservation": True, "num_class_images": len(OTHERS),
    "resolution": SIDE, "train_batch_size": BATCH, "learning_rate": 1e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0, "rank": RANK,
    "seed": 0, "checkpointing_steps": 100_000,
}  # fmt: skip
OURS = {
    "ours, eager, fp32": ("no", "NEVER", ">= 1.6x"),
    "ours, compiled before, fp32": ("no", "NOW", ">= 1.9x"),
    "ours, compiled before, bf16": ("bf16", "NOW", ">= 2.5x"),
}


def groups(peers: Path | None) -> list[Group]:
    """Everything in one run, three rounds in turns."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        _pictures(root)
        script = next(peers.rglob("train_dreambooth_lora.py")) if peers else None
        environment = _environment()
        for name, (precision, compile_, _) in OURS.items():
            if compile_ == "NOW":  # compiled once; the runs that are measured find what it has left
                print(f"{name}: compiling", flush=True)
                _child(["ours", precision, compile_, "2"], root, environment)
        speeds: dict[str, list[float]] = {name: [] for name in ("script", "cached", *OURS)}
        for _ in range(3):
            if script:
                speeds["script"].append(_script(script, root))
            speeds["cached"].append(_child(["cached"], root, _environment(jemalloc=False))["speed"])
            for name, (precision, compile_, _) in OURS.items():
                speeds[name].append(_child(["ours", precision, compile_, str(LONG)], root, environment)["speed"])
    return [_group({name: sorted(values)[len(values) // 2] for name, values in speeds.items() if values})]


def _group(speeds: Mapping[str, float]) -> Group:
    names = {"script": "diffusers' train_dreambooth_lora.py, fp32", "cached": "a plain loop over cached latents, fp32"}
    rows = []
    if "script" not in speeds:
        rows.append(Row(what=names["script"], measured="not measured: PEERS names no folder with diffusers' examples"))
    reference = speeds.get("script", speeds["cached"])
    for name, speed in speeds.items():
        goal = OURS[name][2] if name in OURS else ""
        rows.append(Row(what=names.get(name, name), measured=f"{speed:.2f} steps/s", ratio=f"{speed / reference:.2f}x", goal=goal))
    allocator = "jemalloc preloaded for ours" if _environment().get("LD_PRELOAD") else "glibc's allocator for all: there is no jemalloc"
    against = "the script" if "script" in speeds else "the plain loop"
    words = (
        f"The model on board, {BATCH} + {BATCH} pictures of {SIDE} pixels a step, rank {RANK} on attention, AdamW; {allocator}. Steps a "
        f"second after the first {SHORT}, median of three runs. The ratio is to {against}. `compiled before` finds a training engine that "
        "an earlier run has left."
    )
    return Group(title="Training", words=words, rows=rows)


def _pictures(root: Path) -> None:
    for folder in ("instance", "class"):
        (root / folder).mkdir()
    for colour in SEEN:
        picture("octopus", colour).save(root / "instance" / f"{colour}.png")
    for other in OTHERS:
        picture(other, "white").save(root / "class" / f"{other}.png")


def _environment(*, jemalloc: bool = True) -> dict[str, str]:
    found = next((path for path in JEMALLOC if Path(path).exists()), "") if jemalloc else ""
    return {**os.environ, "HF_HUB_OFFLINE": "1", **({"LD_PRELOAD": found} if found else {})}


def _child(arguments: list[str], root: Path, environment: Mapping[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, str(root), *arguments]
    done = subprocess.run(command, check=True, env=dict(environment), stdout=subprocess.PIPE, text=True)
    content: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return content


def _script(script: Path, root: Path) -> float:
    """From two runs of different length, so that start and end count for nothing."""
    seconds = []
    for steps in (SHORT, LONG):
        folders = {
            "pretrained_model_name_or_path": base_model.folder(), "instance_data_dir": root / "instance",
            "class_data_dir": root / "class", "output_dir": root / "script", "max_train_steps": steps,
        }  # fmt: skip
        flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in {**FLAGS, **folders}.items()]
        begin = time.perf_counter()
        output = subprocess.DEVNULL
        subprocess.run([sys.executable, str(script), *flags], check=True, env=_environment(jemalloc=False), stdout=output, stderr=output)
        seconds.append(time.perf_counter() - begin)
    return (LONG - SHORT) / (seconds[1] - seconds[0])


def _ours(root: Path, precision: str, compile_: str, steps: int) -> float:
    from atelier.artifacts.manifest import Kind
    from atelier.jobs.context import FolderContext
    from atelier.trainer.worker import execute
    from atelier.v1 import trainer_pb2

    stamps: list[float] = []

    class Timed(FolderContext):
        def progress(self, phase: str, step: int, total_steps: int = 0, **figures: float | None) -> None:
            if phase == "training":
                stamps.append(time.perf_counter())

    # Training engines are found in the folder; every run has a job of its own, so that it begins at the first step.
    context = Timed(root / "ours", job=f"jobs/{time.time_ns()}")
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH_LORA, pretrained_model_name_or_path=context.add(Kind.MODEL, base_model.folder()),
        instance_data_dir=context.add(Kind.DATASET, root / "instance"), class_data_dir=context.add(Kind.DATASET, root / "class"),
        max_train_steps=steps, mixed_precision=precision, compile=trainer_pb2.TrainCompile.Value(f"TRAIN_COMPILE_{compile_}"), **FLAGS,
    )  # fmt: skip
    context.workdir = context.workdir / context.job.removeprefix("jobs/")
    context.workdir.mkdir()
    execute(request, context)
    return (len(stamps) - SHORT) / (stamps[-1] - stamps[SHORT - 1]) if len(stamps) > SHORT else 0.0


def _cached(root: Path) -> float:
    """A plain loop: latents and embeddings once, then UNet, loss and AdamW."""
    import torch
    from diffusers import DDPMScheduler
    from peft import LoraConfig
    from PIL import Image
    from torch.nn import functional

    from atelier.graphs.model import encode_prompt, load_model
    from atelier.trainer.latents import to_tensor

    model = load_model(base_model.folder())
    with torch.no_grad():
        kinds = [[to_tensor(Image.open(p)) for p in sorted((root / name).iterdir())] for name in ("instance", "class")]
        posteriors = [model.vae.encode(torch.stack(kind)).latent_dist for kind in kinds]
        text = encode_prompt(model, [FLAGS["instance_prompt"]] * BATCH + [FLAGS["class_prompt"]] * BATCH)
    model.unet.requires_grad_(False)
    model.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    trainable = [parameter for parameter in model.unet.parameters() if parameter.requires_grad]
    optimizer, scheduler = torch.optim.AdamW(trainable, lr=1e-4), DDPMScheduler.from_config(model.scheduler_config)
    model.unet.train()
    begin = 0.0
    for step in range(LONG):
        begin = time.perf_counter() if step == SHORT else begin
        rows = [p.sample()[torch.randint(len(p.mean), (BATCH,))] for p in posteriors]
        latents = torch.cat(rows) * model.facts.scaling_factor
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (2 * BATCH,))
        prediction = model.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
        halves = zip(prediction.chunk(2), noise.chunk(2), strict=True)
        sum(functional.mse_loss(one, other) for one, other in halves).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (LONG - SHORT) / (time.perf_counter() - begin)


def main() -> None:
    """One run in this process."""
    root, kind, *rest = Path(sys.argv[1]), *sys.argv[2:]
    speed = _cached(root) if kind == "cached" else _ours(root, rest[0], rest[1], int(rest[2]))
    print(json.dumps({"speed": speed}))


if __name__ == "__main__":
    main()
