"""DreamBooth-LoRA beside diffusers' script and beside a plain loop over cached latents: steps a second, start-up left out."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atelier import base_model
from atelier.demo.drawings import OTHERS, SEEN, picture
from atelier.jobs.launcher import JEMALLOC
from bench.figures import Asked, Group, Row, missing

BATCH, SIDE, RANK = 4, 128, 16
SHORT, LONG = 4, 44
FLAGS: dict[str, Any] = {
    "instance_prompt": "a sks emoji", "class_prompt": "a noto emoji", "with_prior_preservation": True, "num_class_images": len(OTHERS),
    "resolution": SIDE, "train_batch_size": BATCH, "learning_rate": 1e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0, "rank": RANK,
    "seed": 0, "checkpointing_steps": 100_000,
}  # fmt: skip
SCRIPT, CACHED = "diffusers' train_dreambooth_lora.py, fp32", "a plain loop over cached latents, fp32"
OURS = {
    "ours, eager, fp32": ("no", "NEVER", ">= 1.6x from the first step on"),
    "ours, compiled before, fp32": ("no", "NOW", ">= 1.9x"),
    "ours, compiled before, bf16": ("bf16", "NOW", ">= 2.5x"),
}


@dataclass(kw_only=True)
class Speeds:
    """Steps a second of every run of a competitor, and seconds from the start of its process to the end of its first step."""

    steps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    reason: str = ""
    """Why it was not measured."""

    def run(self, work: Callable[[], Mapping[str, float]]) -> None:
        """Takes a run in; a competitor that has failed is not asked again."""
        if self.reason:
            return
        try:
            found = work()
        except subprocess.CalledProcessError as error:
            self.reason = (error.stderr or "").strip() or str(error)
            return
        self.steps.append(found["speed"])
        if "first" in found:
            self.first.append(found["first"])


def groups(asked: Asked) -> list[Group]:
    """Everything in one run, three rounds in turns."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        _pictures(root)
        speeds = {name: Speeds() for name in (SCRIPT, CACHED, *OURS)}
        script = next(asked.peers.rglob("train_dreambooth_lora.py"), None) if asked.peers else None
        if script is None:
            speeds[SCRIPT].reason = "PEERS names no folder with diffusers' examples"
        for name, (precision, compile_, _) in OURS.items():
            if compile_ == "NOW" and asked.quick:
                speeds[name].reason = "--quick compiles nothing"
            elif compile_ == "NOW":  # compiled once; the runs that are measured find what it has left
                print(f"{name}: compiling", flush=True)
                speeds[name].run(lambda given=(precision, compile_): _child(["ours", *given, "2"], root))  # type: ignore[misc]
                speeds[name] = Speeds(reason=speeds[name].reason)
        for _ in range(1 if asked.quick else 3):
            if script:
                speeds[SCRIPT].run(lambda: _script(script, root))
            speeds[CACHED].run(lambda: _child(["cached"], root, jemalloc=False))
            for name, (precision, compile_, _) in OURS.items():
                speeds[name].run(lambda given=(precision, compile_): _child(["ours", *given, str(LONG)], root))  # type: ignore[misc]
    return [_group(speeds)]


def _group(speeds: Mapping[str, Speeds]) -> Group:
    against = SCRIPT if speeds[SCRIPT].steps else CACHED
    rows = []
    for name, found in speeds.items():
        if found.reason:
            rows.append(missing(name, found.reason))
            continue
        first = f", first step after {statistics.median(found.first):.0f} s" if found.first else ""
        speed, reference = statistics.median(found.steps), statistics.median(speeds[against].steps)
        goal = OURS[name][2] if name in OURS else ""
        rows.append(Row(what=name, measured=f"{speed:.2f} steps/s{first}", ratio=f"{speed / reference:.2f}x", goal=goal))
    allocator = "jemalloc preloaded for ours" if _environment().get("LD_PRELOAD") else "glibc's allocator for all: there is no jemalloc"
    words = (
        f"The model on board, {BATCH} + {BATCH} pictures of {SIDE} pixels a step, rank {RANK} on attention, AdamW; {allocator}. Steps a "
        f"second after the first {SHORT}, median of {len(speeds[CACHED].steps)}; the script's from runs of {SHORT} and {LONG} steps. The "
        f"ratio is to {against}. `compiled before` finds a training engine that an earlier run has left; a first step is counted from the "
        "start of the process."
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


def _child(arguments: list[str], root: Path, *, jemalloc: bool = True) -> dict[str, float]:
    """A run of ours as the launcher of jobs starts it, or of the plain loop, in a process of its own."""
    command = [sys.executable, "-m", __name__, str(root), *arguments]
    begin = time.time()
    done = subprocess.run(command, check=True, env=_environment(jemalloc=jemalloc), capture_output=True, text=True)
    content: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return content | {"first": content["first"] - begin}


def _script(script: Path, root: Path) -> dict[str, float]:
    """From two runs of different length, so that start and end count for nothing."""
    seconds = []
    for steps in (SHORT, LONG):
        folders = {
            "pretrained_model_name_or_path": base_model.folder(), "instance_data_dir": root / "instance",
            "class_data_dir": root / "class", "output_dir": root / "script", "max_train_steps": steps,
        }  # fmt: skip
        flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in {**FLAGS, **folders}.items()]
        command = [sys.executable, str(script), *flags]
        begin = time.perf_counter()
        subprocess.run(command, check=True, env=_environment(jemalloc=False), capture_output=True, text=True)
        seconds.append(time.perf_counter() - begin)
    return {"speed": (LONG - SHORT) / (seconds[1] - seconds[0])}


def _ours(root: Path, precision: str, compile_: str, steps: int) -> dict[str, float]:
    from atelier.artifacts.manifest import Kind
    from atelier.jobs.context import FolderContext
    from atelier.trainer.worker import execute
    from atelier.v1 import trainer_pb2

    stamps: list[float] = []
    words: list[str] = []

    class Timed(FolderContext):
        def progress(self, phase: str, step: int, total_steps: int = 0, **figures: float | None) -> None:
            if phase == "training":
                stamps.append(time.time())

        def log(self, message: str, *, level: str = "info") -> None:
            words.append(message)

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
    if compile_ == "NOW" and not any("compil" in word and "eager" not in word for word in words):
        raise SystemExit("; ".join(words) or "this run was not compiled")
    speed = (len(stamps) - SHORT) / (stamps[-1] - stamps[SHORT - 1]) if len(stamps) > SHORT else 0.0
    return {"speed": speed, "first": stamps[0]}


def _cached(root: Path) -> dict[str, float]:
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
    stamps = []
    for _ in range(LONG):
        rows = [p.sample()[torch.randint(len(p.mean), (BATCH,))] for p in posteriors]
        latents = torch.cat(rows) * model.facts.scaling_factor
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (2 * BATCH,))
        prediction = model.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
        halves = zip(prediction.chunk(2), noise.chunk(2), strict=True)
        sum(functional.mse_loss(one, other) for one, other in halves).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(time.time())
    return {"speed": (LONG - SHORT) / (stamps[-1] - stamps[SHORT - 1]), "first": stamps[0]}


def main() -> None:
    """One run in this process."""
    root, kind, *rest = Path(sys.argv[1]), *sys.argv[2:]
    print(json.dumps(_cached(root) if kind == "cached" else _ours(root, rest[0], rest[1], int(rest[2]))))


if __name__ == "__main__":
    main()
