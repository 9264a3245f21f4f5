"""Are our losses those of diffusers' DreamBooth scripts? Runs both on the same pictures and draws, in fp32, and compares step by step.

`python tests/peers/losses.py --peers DIR`, where DIR holds diffusers' `examples`; torchvision, which the scripts need, must be installed.
Random numbers that the scripts would draw are replaced by ours, adapters begin with the same values in both, pictures come in our order.
"""

from __future__ import annotations

import argparse
import hashlib
import runpy
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from atelier import base_model
from atelier.artifacts.manifest import Kind
from atelier.demo.drawings import OTHERS, SEEN, picture
from atelier.jobs.context import FolderContext
from atelier.trainer import sampling
from atelier.trainer.worker import execute
from atelier.v1 import trainer_pb2

METHODS = {
    "train_dreambooth.py": (trainer_pb2.METHOD_DREAMBOOTH, 5e-6),
    "train_dreambooth_lora.py": (trainer_pb2.METHOD_DREAMBOOTH_LORA, 1e-4),
}
"""The scripts, our methods, and learning rates that are usual for them: with larger ones rounding alone grows within 30 steps."""
SEED, BATCH, SIDE = 7, 2, 128
FLAGS: dict[str, Any] = {
    "instance_prompt": "a sks emoji",
    "class_prompt": "a noto emoji",
    "with_prior_preservation": True,
    "num_class_images": len(OTHERS),
    "resolution": SIDE,
    "train_batch_size": BATCH,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "checkpointing_steps": 10_000,
    "seed": SEED,
}


@contextmanager
def equal_adapters() -> Iterator[None]:
    """Adapters begin with values that depend on their names alone."""
    original = UNet2DConditionModel.add_adapter

    def add_adapter(unet: Any, *arguments: Any, **options: Any) -> None:
        original(unet, *arguments, **options)
        for name, parameter in unet.named_parameters():
            if ".lora_A." in name:
                digest = hashlib.sha256(name.encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[0])

    with mock.patch.object(UNet2DConditionModel, "add_adapter", add_adapter):
        yield


def ours(root: Path, method: trainer_pb2.Method.ValueType, flags: Mapping[str, Any]) -> tuple[list[float], list[sampling.Sampler]]:
    """Our losses, and the sampler that drew for them."""
    context = FolderContext(root / "ours")
    request = trainer_pb2.TrainRequest(
        method=method,
        pretrained_model_name_or_path=context.add(Kind.MODEL, base_model.folder()),
        instance_data_dir=context.add(Kind.DATASET, root / "instance"),
        class_data_dir=context.add(Kind.DATASET, root / "class"),
        compile=trainer_pb2.TRAIN_COMPILE_NEVER,
        **flags,
    )
    samplers: list[sampling.Sampler] = []
    batch = sampling.Sampler.batch

    def seen(sampler: sampling.Sampler, position: int) -> sampling.Batch:
        samplers.append(sampler)
        return batch(sampler, position)

    with mock.patch.object(sampling.Sampler, "batch", seen):
        execute(request, context)
    return [event["loss"] for event in context.events if event.get("phase") == "training"], samplers[:1]


def draws(sampler: sampling.Sampler, steps: int) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For every step: pictures, posterior draws and noise [B, C, h, w], timesteps [B], as the sampler draws them."""
    assert sampler.prior is not None
    length = max(len(sampler.instance), len(sampler.prior))
    shape = sampler.instance.mean.shape[1:]
    for position in range(steps):
        generator = torch.Generator().manual_seed(sampler.mix("batch", position))
        indices = [sampler._index(position * BATCH + i, length) for i in range(BATCH)]
        posterior = torch.stack([torch.randn(shape, generator=generator) for _ in range(2 * BATCH)])
        noise = torch.randn(posterior.shape, generator=generator)
        yield indices, posterior, noise, torch.randint(0, sampler.num_train_timesteps, (2 * BATCH,), generator=generator)


def theirs(script: Path, root: Path, flags: Mapping[str, Any], sampler: sampling.Sampler) -> list[float]:
    """The script's losses with our draws."""
    plan = list(draws(sampler, flags["max_train_steps"]))
    order = [index for indices, *_ in plan for index in indices]
    queues = {name: iter([step[place] for step in plan]) for place, name in enumerate(("order", "posterior", "noise", "timesteps"))}
    losses: list[float] = []
    loader, sorted_folder = torch.utils.data.DataLoader, Path.iterdir

    class Ordered(loader):  # type: ignore[valid-type, misc]
        def __init__(self, dataset: Any, **options: Any) -> None:
            own = {"shuffle": False, "sampler": order} if options.pop("shuffle", False) else {}
            super().__init__(dataset, **options, **own)

    patches = [
        mock.patch.object(torch.utils.data, "DataLoader", Ordered),
        mock.patch.object(Path, "iterdir", lambda path: iter(sorted(sorted_folder(path)))),
        mock.patch.object(DiagonalGaussianDistribution, "sample", lambda given: given.mean + given.std * next(queues["posterior"])),
        mock.patch.object(torch, "randn_like", lambda _: next(queues["noise"])),
        mock.patch.object(torch, "randint", lambda *_, **__: next(queues["timesteps"])),
        mock.patch.object(Accelerator, "log", lambda _, values, **__: losses.append(values["loss"]) if "loss" in values else None),
        mock.patch.object(sys, "argv", [str(script), *arguments(root, flags)]),
    ]
    for patch in patches:
        patch.start()
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        for patch in patches:
            patch.stop()
    return losses


def arguments(root: Path, flags: Mapping[str, Any]) -> list[str]:
    """The script's command line."""
    folders = {
        "pretrained_model_name_or_path": base_model.folder(), "instance_data_dir": root / "instance", "class_data_dir": root / "class",
        "output_dir": root / "theirs",
    }  # fmt: skip
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in {**flags, **folders}.items()]


def main() -> None:
    """Compares both methods."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    for name, (method, learning_rate) in METHODS.items():
        with tempfile.TemporaryDirectory() as place, equal_adapters():
            root = Path(place)
            for folder in ("instance", "class"):
                (root / folder).mkdir()
            for colour in SEEN:
                picture("octopus", colour).save(root / "instance" / f"{colour}.png")
            for other in OTHERS:
                picture(other, "white").save(root / "class" / f"{other}.png")
            flags = {**FLAGS, "learning_rate": learning_rate, "max_train_steps": given.steps}
            mine, (sampler,) = ours(root, method, flags)
            found = theirs(next(given.peers.rglob(name)), root, flags, sampler)
        assert len(mine) == len(found) == given.steps, (len(mine), len(found))
        worst = max(abs(a - b) / b for a, b in zip(mine, found, strict=True))
        print(f"{name}: {given.steps} steps, first {found[0]:.6f}, last {found[-1]:.6f}; largest relative difference {worst:.2e}")


if __name__ == "__main__":
    main()
