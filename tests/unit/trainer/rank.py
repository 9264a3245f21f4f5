"""One rank of a run that torchrun starts: leaves its gradients, before and after they were averaged, at every step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from google.protobuf import json_format
from safetensors.torch import save_file

from atelier.jobs.context import FolderContext
from atelier.jobs.follower import FollowerContext, RecordedContext
from atelier.trainer import training
from atelier.trainer.worker import execute
from atelier.v1 import trainer_pb2


def main() -> None:
    root, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    request = json_format.Parse((root / "request.json").read_text(), trainer_pb2.TrainRequest())
    average = training._average_gradients

    def recorded(run: training.Run) -> None:
        def gradients() -> dict[str, object]:
            return {name: parameter.grad.clone() for name, parameter in run.trainable.items() if parameter.grad is not None}

        place = root / f"{run.accelerator.num_processes}-{rank}-{run.step}"
        save_file(gradients(), f"{place}-own.safetensors")
        average(run)
        save_file(gradients(), f"{place}-averaged.safetensors")

    training._average_gradients = recorded
    if rank:
        follower = FollowerContext(job="jobs/local", workdir=root / "work")
        follower.spec()
        execute(request, follower)
    else:
        execute(request, RecordedContext(FolderContext(root), spec=b"spec"))


if __name__ == "__main__":
    main()
