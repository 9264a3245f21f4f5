"""A toy worker: counts to the request's `max_train_steps`, a checkpoint each 5 steps; `instance_prompt` says how it misbehaves."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from atelier import errors
from atelier.artifacts.manifest import Kind
from atelier.jobs.context import JobContext, Preempted
from atelier.jobs.worker import main
from atelier.v1 import trainer_pb2


def execute(spec: trainer_pb2.TrainRequest, context: JobContext) -> None:
    found = context.read_checkpoint()
    start = json.loads((found[1] / "weights" / "count.json").read_text()) if found else 0
    context.log(f"begins at {start}")
    if spec.instance_prompt == "bad":
        raise errors.invalid_field("learning_rate", "is no good")
    for step in range(start + 1, spec.max_train_steps + 1):
        try:
            context.check_cancelled()
        except Preempted:
            _checkpoint(context, step - 1)
            raise
        time.sleep(0.02)
        context.progress("counting", step, spec.max_train_steps, loss=1 / step)
        if step % 5 == 0:
            _checkpoint(context, step)
        if spec.instance_prompt == "dies" and step == 12 and start < 10:
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.instance_prompt == "always dies" and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    context.sample(spec.max_train_steps, 0, b"\x89PNG a picture")
    folder = context.workdir / "result"
    folder.mkdir()
    (folder / "lora.txt").write_text("done")
    context.publish("lora", Kind.LORA, folder, metadata={"key": "toy", "steps": spec.max_train_steps})


def _checkpoint(context: JobContext, step: int) -> None:
    folder = Path(context.workdir) / f"checkpoint-{step}"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "count.json").write_text(json.dumps(step))
    (folder / "optimizer.json").write_text("{}")
    context.write_checkpoint(step, folder, keep_full=2, keep_weights=3)


if __name__ == "__main__":
    main(execute)
