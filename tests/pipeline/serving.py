"""An `atelier up` that serves, and what tests ask of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import command, free_port
from safetensors.torch import load_file, save_file

from atelier import base_model
from atelier.client import Client
from atelier.errors import AtelierError
from atelier.v1 import image_pb2


@dataclass
class Installation:
    process: subprocess.Popen[bytes]
    data: Path
    port: int
    serve_port: int
    client: Client

    def replica(self) -> psutil.Process:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it may end meanwhile
                found += [process] if "ServeReplica" in " ".join(process.cmdline()) else []
        assert len(found) == 1
        return found[0]

    def picture(self, **fields: Any) -> image_pb2.GeneratedImage:
        request = image_pb2.GenerateRequest(**{"prompt": "a fox", "deployment": "base", "steps": 2, "width": 64, "height": 64, **fields})
        *_, last = self.client.generate(request)
        assert isinstance(last, image_pb2.GeneratedImage)
        return last


def start(stack: ExitStack, data: Path, environment: Mapping[str, str]) -> Installation:
    port, serve_port = free_port(), free_port()
    own = {"ATELIER_SERVE_PORT": str(serve_port), "ATELIER_REPLICA_THREADS": "1", "ATELIER_WORKER_THREADS": "1"}
    arguments = ["--data", str(data), "up", "--listen", f"127.0.0.1:{port}"]
    process = stack.enter_context(command(arguments, log=data.with_suffix(".txt"), environment={**own, **environment}))
    return Installation(process=process, data=data, port=port, serve_port=serve_port, client=None)  # type: ignore[arg-type]


@contextmanager
def start_one(data: Path) -> Iterator[Installation]:
    """One for a test of its own, with all processors."""
    port = free_port()
    with command(["--data", str(data), "up", "--listen", f"127.0.0.1:{port}"], log=data.with_suffix(".txt")) as process:
        yield Installation(process=process, data=data, port=port, serve_port=0, client=None)  # type: ignore[arg-type]


def other_model(folder: Path) -> Path:
    """The model on board with other weights."""
    shutil.copytree(base_model.folder(), folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] = weights["conv_out.bias"] + 0.01
    file.unlink()
    save_file(weights, file)
    return folder


def refused(call: Callable[[], Any]) -> AtelierError:
    with pytest.raises(AtelierError) as caught:
        call()
    return caught.value
