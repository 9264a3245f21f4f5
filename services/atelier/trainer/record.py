"""The record of a run: what was asked, how the loss went, the pictures made on the way, TensorBoard events, a card for people."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atelier.graphs.model import Model
from atelier.jobs.context import JobContext
from atelier.trainer import pictures
from atelier.trainer.spec import Method, TrainSpec

VALIDATION_STEPS = 25
"""Denoising steps of validation pictures, as in the scripts."""


class Record:
    """Writes below `folder`; does nothing on processes other than the main one."""

    def __init__(self, folder: Path, *, spec: TrainSpec, context: JobContext, main: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._spec = spec
        self._context = context
        self._warnings: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        name = "dreambooth" if spec.method is Method.DREAMBOOTH else "dreambooth-lora"
        self._writer: Any = SummaryWriter(str(folder / "logs" / name)) if main else None  # type: ignore[no-untyped-call]

    def warn(self, sentence: str) -> None:
        """Says something to whoever watches, and keeps it."""
        self._context.log(sentence, level="warning")
        self._warnings.append(sentence)

    def keep(self, checkpoint: Path) -> None:
        """Puts the pictures made so far into a checkpoint."""
        if (self.folder / "samples").exists():
            shutil.copytree(self.folder / "samples", checkpoint / "samples")

    def restore(self, checkpoint: Path, losses: Sequence[tuple[int, float, float]]) -> None:
        """Brings back what an earlier attempt, or the run that goes on, had recorded."""
        for step, loss, rate in losses:
            self.scalars(step, loss, rate)
        if self._writer is None or not (checkpoint / "samples").exists():
            return
        shutil.copytree(checkpoint / "samples", self.folder / "samples", dirs_exist_ok=True)
        found = sorted((self.folder / "samples").glob("*.png"))
        for step, paths in itertools.groupby(found, key=lambda path: int(path.name.partition("-")[0])):
            self._show(step, [Image.open(path) for path in paths])

    def scalars(self, step: int, loss: float, learning_rate: float) -> None:
        """Adds a step to the TensorBoard events, under the scripts' names."""
        if self._writer is not None:
            self._writer.add_scalar("loss", loss, step)
            self._writer.add_scalar("lr", learning_rate, step)

    def validate(self, model: Model, step: int, *, side: int, dtype: torch.dtype) -> None:
        """Draws the validation pictures, in the precision of the run."""
        spec = self._spec
        assert spec.validation_prompt
        images = pictures.draw(
            model, spec.validation_prompt, count=spec.num_validation_images, batch_size=spec.sample_batch_size, seed=spec.seed,
            steps=VALIDATION_STEPS, guidance_scale=7.5, side=side, dtype=dtype,
        )  # fmt: skip
        (self.folder / "samples").mkdir(exist_ok=True)
        made = []
        for index, image in enumerate(images):
            made.append(image)
            png = pictures.to_png(image)
            (self.folder / "samples" / f"{step:06d}-{index}.png").write_bytes(png)
            self._context.sample(step, index, png)
        self._show(step, made)

    def _show(self, step: int, images: Sequence[Image.Image]) -> None:
        self._writer.add_images("validation", np.stack([np.asarray(image) for image in images]), step, dataformats="NHWC")

    def finish(self, result: Path, *, losses: Sequence[tuple[int, float, float]], base: str, facts: Mapping[str, Any]) -> None:
        """Closes the record; puts a card, and the last picture as its preview, beside the result."""
        if self._writer is not None:
            self._writer.close()
        (self.folder / "spec.json").write_text(json.dumps(dataclasses.asdict(self._spec), indent=2))
        (self.folder / "facts.json").write_text(json.dumps({**facts, "warnings": self._warnings}, indent=2))
        with (self.folder / "losses.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["step", "loss", "learning_rate"])
            writer.writerows(losses)
        (result / "README.md").write_text(_card(self._spec, base=base, facts=facts))
        samples = sorted((self.folder / "samples").glob("*-0.png"))
        if samples:
            shutil.copyfile(samples[-1], result / "preview.png")


def _card(spec: TrainSpec, *, base: str, facts: Mapping[str, Any]) -> str:
    lines = [
        f"# {spec.instance_prompt}",
        "",
        f"{spec.method} of artifacts/{base}, trained by Atelier. Prompt: `{spec.instance_prompt}`."
        + (f" Class: `{spec.class_prompt}`, {spec.num_class_images} pictures." if spec.with_prior_preservation else ""),
        "",
        "| setting | value |",
        "|---|---|",
    ]
    settings = {**dataclasses.asdict(spec), **facts}
    lines += [
        f"| {name} | {value} |" for name, value in settings.items() if value is not None and name not in ("instance_prompt", "class_prompt")
    ]
    return "\n".join(lines) + "\n"
