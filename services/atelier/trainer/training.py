"""The loop. Imports no grpcio, ray or obstore: it runs wherever torch, diffusers and accelerate are."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from atelier.errors import failed_precondition
from atelier.jobs.context import Cancelled, JobContext, Preempted
from atelier.trainer import checkpoint, loss
from atelier.trainer.sampling import Batch, Sampler
from atelier.trainer.spec import TrainSpec

KEEP_FULL = 2
"""Checkpoints whose full state is kept while the run goes on."""


@dataclass(kw_only=True)
class Run:
    """All that the loop works on. `trainable` are the UNet's parameters that learn, by name; `ema` their average, where one is kept."""

    spec: TrainSpec
    accelerator: Accelerator
    unet: Any
    trainable: dict[str, Tensor]
    sampler: Sampler
    alphas_cumprod: Tensor
    prediction_type: str
    total_steps: int
    facts: dict[str, Any]
    forward: Callable[..., Any] | None = None
    """The UNet's forward, compiled, where it is."""
    ema: dict[str, Tensor] | None = None
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    step: int = 0
    validate: Callable[[int], None] = lambda step: None
    write_scalars: Callable[[int, float, float], None] = lambda step, loss, rate: None
    keep: Callable[[Path], None] = lambda folder: None
    """Adds to a checkpoint's files what else the run has made so far."""
    warmed_up: Callable[[], None] = lambda: None
    """Told after the first step of this process."""

    def __post_init__(self) -> None:
        spec = self.spec
        self.optimizer = torch.optim.AdamW(
            list(self.trainable.values()),
            lr=spec.learning_rate * self._scale(),
            betas=(spec.adam_beta1, spec.adam_beta2),
            weight_decay=spec.adam_weight_decay,
            eps=spec.adam_epsilon,
            fused=True,
        )
        if spec.ema_decay is not None:
            self.ema = {name: parameter.detach().clone() for name, parameter in self.trainable.items()}
        self.scheduler = _scheduler(self.optimizer, spec, total_steps=self.total_steps)
        self.scaler: Any = self.accelerator.scaler  # of the loss; there is one in fp16 alone

    def _scale(self) -> float:
        spec = self.spec
        return spec.gradient_accumulation_steps * spec.train_batch_size * spec.num_processes if spec.scale_lr else 1.0


def train(run: Run, context: JobContext) -> None:
    """Runs to the last step; checkpoints on the way. Raises what `context.check_cancelled` raises, after a checkpoint when preempted."""
    begin, first = time.monotonic(), run.step
    run.unet.train()
    while run.step < run.total_steps:
        try:
            _agree_to_go_on(run, context)
        except Preempted:
            save_checkpoint(run, context)
            raise
        value = _update(run)
        run.step += 1
        if not math.isfinite(value):
            raise failed_precondition("LOSS_NOT_FINITE", f"the loss is {value} at step {run.step}: lower learning_rate, or train in fp32")
        if run.step == first + 1:
            run.warmed_up()
        rate = run.scheduler.get_last_lr()[0]
        run.losses.append((run.step, value, rate))
        run.write_scalars(run.step, value, rate)
        speed = (run.step - first) / (time.monotonic() - begin)
        context.progress(
            "training", run.step, run.total_steps, loss=value, learning_rate=rate,
            eta_seconds=(run.total_steps - run.step) / speed, steps_per_second=speed,
        )  # fmt: skip
        run.validate(run.step)  # before the checkpoint, which keeps the pictures
        if run.step % run.spec.checkpointing_steps == 0 or run.step == run.total_steps:
            save_checkpoint(run, context)
    run.unet.eval()


def save_checkpoint(run: Run, context: JobContext) -> None:
    """Commits where the run is, once."""
    there = context.checkpoints()  # asked by every process: those that follow keep count of what is asked
    if not run.accelerator.is_main_process or run.step in there:
        return
    folder = Path(context.workdir) / f"checkpoint-{run.step}"
    scaler = run.scaler.state_dict() if run.scaler is not None else {}
    progress = checkpoint.Progress(step=run.step, losses=run.losses, facts=run.facts, scaler=scaler)
    checkpoint.write(folder, trainable=run.trainable, optimizer=run.optimizer, ema=run.ema, progress=progress)
    run.keep(folder)
    limit = run.spec.checkpoints_total_limit or 0
    full = 1 if run.step >= run.total_steps else min(KEEP_FULL, limit or KEEP_FULL)
    context.write_checkpoint(run.step, folder, keep_full=full, keep_weights=limit)
    shutil.rmtree(folder)


def resume(run: Run, folder: Path) -> list[str]:
    """Puts a checkpoint's state in place; gives what is different now, so that the run does not go on bit for bit."""
    checkpoint.read(folder, trainable=run.trainable, optimizer=run.optimizer, ema=run.ema)
    progress = checkpoint.read_progress(folder)
    run.step, run.losses = progress.step, list(progress.losses)
    if run.scaler is not None and progress.scaler:
        run.scaler.load_state_dict(progress.scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the scheduler wants an optimizer's step between its own
        for _ in range(run.step):
            run.scheduler.step()
    now = run.facts
    return [f"{name} {now.get(name)} instead of {value}" for name, value in sorted(progress.facts.items()) if now.get(name) != value]


def _update(run: Run) -> float:
    spec = run.spec
    value = 0.0
    for part in range(spec.gradient_accumulation_steps):
        position = run.step * spec.gradient_accumulation_steps + part
        batch = run.sampler.batch(position)
        torch.manual_seed(run.sampler.mix("dropout", position))
        with run.accelerator.autocast():
            error = _loss(run, batch)
        run.accelerator.backward(error / spec.gradient_accumulation_steps)
        value += error.item() / spec.gradient_accumulation_steps
    _average_gradients(run)
    _step(run)
    if run.ema is not None and spec.ema_decay is not None:
        with torch.no_grad():
            torch._foreach_lerp_(list(run.ema.values()), list(run.trainable.values()), 1 - spec.ema_decay)
    return value


def _step(run: Run) -> None:
    if run.scaler is not None:
        run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(list(run.trainable.values()), run.spec.max_grad_norm)
    if run.scaler is None:
        run.optimizer.step()
    else:
        run.scaler.step(run.optimizer)  # not where gradients were beyond fp16's range
        run.scaler.update()
    run.scheduler.step()
    run.optimizer.zero_grad(set_to_none=True)


def _loss(run: Run, batch: Batch) -> Tensor:
    spec, device = run.spec, run.accelerator.device
    latents, noise, timesteps = batch.latents.to(device), batch.noise.to(device), batch.timesteps.to(device)
    alphas = run.alphas_cumprod.to(device)
    noisy = loss.add_noise(latents, noise, timesteps, alphas_cumprod=alphas)
    forward = run.unet if run.forward is None else run.forward  # a compiled module has no truth value
    prediction = forward(noisy, timesteps, batch.embeddings.to(device), return_dict=False)[0]
    wanted = loss.target(latents, noise, timesteps, alphas_cumprod=alphas, prediction_type=run.prediction_type)
    weights = None
    if spec.snr_gamma is not None:
        weights = loss.min_snr_weights(timesteps, alphas_cumprod=alphas, gamma=spec.snr_gamma, prediction_type=run.prediction_type)
    if spec.with_prior_preservation:
        return loss.prior_preservation_loss(prediction, wanted, weight=spec.prior_loss_weight, row_weights=weights)
    return loss.mse(prediction, wanted, weights)


def _average_gradients(run: Run) -> None:
    if run.accelerator.num_processes == 1:
        return
    for parameter in run.trainable.values():
        if parameter.grad is not None:
            parameter.grad = run.accelerator.reduce(parameter.grad, reduction="mean")


def _agree_to_go_on(run: Run, context: JobContext) -> None:
    """Stops every process at the same step: rank 0 is told by the context, and tells the others."""
    stop: Exception | None = None
    try:
        context.check_cancelled()
    except Exception as error:
        stop = error
    if run.accelerator.num_processes > 1:
        word = 0.0 if stop is None else 1.0 if isinstance(stop, Preempted) else 2.0
        told = float(run.accelerator.reduce(torch.tensor([word], device=run.accelerator.device), reduction="sum"))
        if told and stop is None:
            raise Preempted if told == 1.0 else Cancelled
    if stop is not None:
        raise stop


def _scheduler(optimizer: torch.optim.Optimizer, spec: TrainSpec, *, total_steps: int) -> Any:
    from diffusers.optimization import get_scheduler

    return get_scheduler(
        spec.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=spec.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=spec.lr_num_cycles,
        power=spec.lr_power,
    )
