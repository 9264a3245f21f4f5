"""Runs agree with a plain loop: no cache, no accelerate, nothing of our losses; diffusers' own scheduler adds the noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional

from atelier.artifacts.manifest import Kind
from atelier.graphs.model import Model, encode_prompt, load_model
from atelier.graphs.random_model import write_random_model
from atelier.jobs.context import FolderContext
from atelier.trainer.latents import to_tensor
from atelier.trainer.requests import to_spec
from atelier.trainer.sampling import Sampler
from atelier.trainer.worker import METHODS, execute
from atelier.v1 import trainer_pb2

STEPS, BATCH, SIDE, PROMPTS = 50, 2, 64, ("a sks emoji", "an emoji")
BOUND = 1e-4


def pictures(folder: Path, colours: list[tuple[int, int, int]]) -> None:
    folder.mkdir()
    for index, colour in enumerate(colours):
        image = Image.new("RGB", (SIDE, SIDE), colour)
        image.paste("white", (8 * index, 8, 8 * index + 24, 40))
        image.save(folder / f"{index}.png")


def draws(spec: Any, shape: tuple[int, ...], count: int, position: int) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """What the run draws at a step: pictures, posterior noise, noise, timesteps."""
    empty: Any = [None] * count
    sampler = Sampler(
        instance=empty, prior=empty, batch_size=BATCH, seed=spec.seed, rank=0, world_size=1, num_train_timesteps=1000,
        scaling_factor=1.0, offset_noise=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(sampler.mix("batch", position))
    indices = [sampler._index(position * BATCH + i, count) for i in range(BATCH)]
    posterior = torch.stack([torch.randn(shape, generator=generator) for _ in range(2 * BATCH)])
    noise = torch.randn(posterior.shape, generator=generator)
    return indices, posterior, noise, torch.randint(0, 1000, (2 * BATCH,), generator=generator)


def reference(model: Model, spec: Any, root: Path) -> list[float]:
    torch.manual_seed(spec.seed)
    trainable = list(METHODS[spec.method].prepare(model.unet, spec).values())
    optimizer = torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=1e-2)
    scheduler = DDPMScheduler.from_config(model.scheduler_config)
    shown = [[Image.open(path) for path in sorted((root / name).iterdir())] for name in ("instance", "class")]
    model.unet.train()
    losses = []
    for position in range(STEPS):
        indices, posterior, noise, timesteps = draws(spec, (4, 8, 8), len(shown[1]), position)
        rows = [to_tensor(kind[index % len(kind)]) for kind in shown for index in indices]
        with torch.no_grad():
            distribution = model.vae.encode(torch.stack(rows)).latent_dist
            latents = (distribution.mean + distribution.std * posterior) * model.facts.scaling_factor
            text = encode_prompt(model, [prompt for prompt in PROMPTS for _ in indices])
        noisy = scheduler.add_noise(latents, noise, timesteps)
        instance, prior = model.unet(noisy, timesteps, text).sample.chunk(2)
        wanted = noise.chunk(2)
        loss = functional.mse_loss(instance, wanted[0]) + spec.prior_loss_weight * functional.mse_loss(prior, wanted[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", [trainer_pb2.METHOD_DREAMBOOTH, trainer_pb2.METHOD_DREAMBOOTH_LORA])
def test_every_loss_equals_a_plain_loops(tmp_path: Path, method: trainer_pb2.Method.ValueType) -> None:
    write_random_model(tmp_path / "base")
    pictures(tmp_path / "instance", [(200, 40, 90), (10, 90, 200)])
    pictures(tmp_path / "class", [(90, 90, 90), (30, 200, 10), (250, 250, 0)])
    context = FolderContext(tmp_path / "run")
    request = trainer_pb2.TrainRequest(
        method=method,
        pretrained_model_name_or_path=context.add(Kind.MODEL, tmp_path / "base"),
        instance_data_dir=context.add(Kind.DATASET, tmp_path / "instance"),
        class_data_dir=context.add(Kind.DATASET, tmp_path / "class"),
        instance_prompt=PROMPTS[0],
        class_prompt=PROMPTS[1],
        with_prior_preservation=True,
        num_class_images=3,
        prior_loss_weight=0.7,
        resolution=SIDE,
        train_batch_size=BATCH,
        max_train_steps=STEPS,
        learning_rate=1e-4,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        seed=5,
    )
    execute(request, context)
    ours = [event["loss"] for event in context.events if event.get("phase") == "training"]
    spec, _ = to_spec(request)
    plain = reference(load_model(tmp_path / "base"), spec, tmp_path)
    assert len(ours) == STEPS
    assert all(abs(a - b) <= BOUND * b for a, b in zip(ours, plain, strict=True)), (ours, plain)
