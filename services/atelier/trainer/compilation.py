"""Compile once, train every fine-tune: forward and backward by inductor, its cache kept as a TRAINING_ENGINE.

The cache depends on graph, method, rank, layers, batch, precision, threads, compiler and versions, not on weights. It needs a C++ compiler
also when it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import TracebackType

import torch

from atelier.artifacts.manifest import Kind, Source
from atelier.engines.detect import detect
from atelier.graphs.graph import Role, read_graph
from atelier.jobs.context import JobContext
from atelier.trainer.spec import Compile, TrainSpec
from atelier.trainer.training import Run

ARCHIVE = "inductor.tar.gz"
PAYS_AFTER_STEPS = 1500
"""Steps from which on a compilation from nothing (some minutes on 2 cores) is made good by its speed."""


class Compilation:
    """Around a run: decides, unpacks what is there, and publishes what is new.

    `wanted` says how the run was computed before, where it goes on: that does not change.
    """

    def __init__(self, run: Run, base: Path, context: JobContext, *, wanted: bool | None) -> None:
        self._run = run
        self._wanted = wanted
        self._context = context
        self._folder = context.workdir / "inductor"
        self._base = base
        self._key = ""

    def __enter__(self) -> Compilation:
        spec, context = self._run.spec, self._context
        compiler = _compiler_version()
        wanted = self._wanted
        if wanted is False or (wanted is None and spec.compile is Compile.NEVER):
            return self._eager("")
        if not compiler:
            return self._eager("there is no C++ compiler (g++): training eager")
        self._key = _key(spec, self._run, base=self._base, compiler=compiler)
        found = context.find(Kind.TRAINING_ENGINE, self._key)
        if found is None and wanted is None and spec.compile is Compile.AUTO:
            pays = self._run.total_steps >= PAYS_AFTER_STEPS
            return self._eager("no training engine for this run yet: --compile now would pay" if pays else "")
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._run.accelerator.main_process_first():  # both would write the same files
            if found is not None and self._run.accelerator.is_main_process:
                with tarfile.open(found.folder / ARCHIVE) as archive:
                    archive.extractall(self._folder, filter="data")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self._folder)
        context.log("training with a compiled forward and backward" if found else "compiling forward and backward: this takes minutes")
        self._run.facts["compiled"] = True
        self._run.unet.to(memory_format=torch.channels_last)
        self._run.forward = torch.compile(self._run.unet)
        if found is None:
            self._run.warmed_up = self._publish
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None) -> None:
        self._run.forward = None

    def _publish(self) -> None:
        """Keeps the cache, as soon as all is compiled: an attempt that follows this one has it too."""
        self._run.accelerator.wait_for_everyone()
        folder = self._context.workdir / "training-engine"
        if self._run.accelerator.is_main_process:
            folder.mkdir()
            with tarfile.open(folder / ARCHIVE, "w:gz", compresslevel=6) as archive:
                archive.add(self._folder, arcname=".")
        self._context.publish("training_engine", Kind.TRAINING_ENGINE, folder, sources=list[Source](), metadata={"key": self._key})

    def _eager(self, word: str) -> Compilation:
        if word:
            self._context.log(word)
        self._run.facts["compiled"] = False
        return self


def _compiler_version() -> str:
    path = shutil.which("g++")
    if path is None:
        return ""
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _key(spec: TrainSpec, run: Run, *, base: Path, compiler: str) -> str:
    import diffusers
    import peft

    facts = {
        "graph": read_graph(base, Role.UNET).digest,
        "method": str(spec.method),
        "rank": spec.rank,
        "layers": spec.lora_layers,
        "scale": (spec.lora_alpha or spec.rank) / spec.rank if spec.rank else None,
        "dropout": spec.lora_dropout,
        "rows": spec.train_batch_size * (2 if spec.with_prior_preservation else 1),
        "side": spec.resolution,
        "precision": run.accelerator.mixed_precision,
        "weights": sorted({str(parameter.dtype) for parameter in run.unet.parameters()}),
        "checkpointing": spec.gradient_checkpointing,
        "threads": torch.get_num_threads(),
        "compiler": compiler,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "fingerprint": detect().only("inductor").key,
    }
    return f"training/{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"
