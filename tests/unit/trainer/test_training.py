"""The loop on a UNet of one layer: what fp16's loss scale does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from atelier.jobs.context import FolderContext
from atelier.trainer import training
from atelier.trainer.latents import Cached
from atelier.trainer.requests import to_spec
from atelier.trainer.sampling import Sampler
from atelier.v1 import trainer_pb2


class OneLayer(nn.Module):
    """Looks like a UNet; where `broken` is set, its gradients overflow at that call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)
        self.calls = 0
        self.broken = -1

    def forward(self, sample: Tensor, timesteps: Tensor, text: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        self.calls += 1
        out: Tensor = self.layer(sample)
        if self.calls - 1 == self.broken:
            out.register_hook(lambda gradient: gradient * float("inf"))
        return (out,)


def run(*, scale: float | None, steps: int = 4) -> training.Run:
    torch.manual_seed(0)
    unet = OneLayer()
    accelerator = Accelerator()
    if scale is not None:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # as Accelerator makes one for fp16 on CUDA
    request = trainer_pb2.TrainRequest(
        method=trainer_pb2.METHOD_DREAMBOOTH, pretrained_model_name_or_path="base", instance_data_dir="pictures",
        instance_prompt="a sks emoji", max_train_steps=steps, train_batch_size=2, lr_warmup_steps=0, learning_rate=1e-2,
        max_grad_norm=0.05, seed=3, checkpointing_steps=2,
    )  # fmt: skip
    pictures = Cached(
        mean=torch.randn(2, 4, 8, 8), deviation=torch.rand(2, 4, 8, 8), rows=((0,), (1,)), prompts=(0, 0), embeddings=torch.randn(1, 77, 8)
    )
    sampler = Sampler(
        instance=pictures, prior=None, batch_size=2, seed=3, rank=0, world_size=1, num_train_timesteps=1000, scaling_factor=1.0,
        offset_noise=False,
    )  # fmt: skip
    made: Any = training.Run(
        spec=to_spec(request)[0], accelerator=accelerator, unet=unet, trainable=dict(unet.named_parameters()), sampler=sampler,
        alphas_cumprod=torch.linspace(0.99, 0.01, 1000), prediction_type="epsilon", total_steps=steps, facts={},
    )  # fmt: skip
    return made


def weights(of: training.Run) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in of.trainable.values()]


def test_gradients_are_clipped_as_they_are_not_as_they_were_scaled(tmp_path: Path) -> None:
    plain, scaled = run(scale=None), run(scale=2.0**16)
    for index, each in enumerate((plain, scaled)):
        training.train(each, FolderContext(tmp_path / str(index)))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(scaled), strict=True))


def test_a_step_whose_gradients_overflow_changes_nothing_but_the_scale(tmp_path: Path) -> None:
    broken = run(scale=2.0**16, steps=1)
    broken.unet.broken = 0
    before = weights(broken)
    training.train(broken, FolderContext(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(broken), strict=True))
    assert broken.scaler.get_scale() == 2.0**15


def test_the_scale_goes_on_where_it_was(tmp_path: Path) -> None:
    first = run(scale=2.0**16, steps=2)
    first.unet.broken = 0
    context = FolderContext(tmp_path)
    training.train(first, context)
    found = context.read_checkpoint()
    assert found is not None
    again = run(scale=2.0**16)
    assert training.resume(again, found[1]) == []
    assert again.scaler.get_scale() == 2.0**15
