"""The whole path on a model of Stable Diffusion 1.5's size with random weights: formats, merge, engine, and two steps at 512 pixels."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from processes import command, connect, free_port, until_healthy
from safetensors.torch import save_file
from test_four_processes import done

from atelier.artifacts.manifest import Kind
from atelier.graphs.random_model import SD15, write_random_model
from atelier.v1 import compiler_pb2, converter_pb2, image_pb2, server_pb2

LIMIT_BYTES = 16e9


class Watch(threading.Thread):
    """The largest PSS of a process and all below it."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(process)
        self._over = threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        while not self._over.wait(1.0):
            found = 0
            with suppress(psutil.Error):  # the root has ended, as all the others do in their time
                for process in (self._root, *self._root.children(recursive=True)):
                    with suppress(psutil.Error):
                        found += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, found)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        self.start()
        yield self
        self._over.set()
        self.join()


def write_lora(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = torch.randn(4, 320, generator=generator), torch.randn(320, 4, generator=generator)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_model_of_sd15s_size_goes_the_whole_way_in_16_gb(tmp_path: Path) -> None:
    write_random_model(tmp_path / "sd15", configs=SD15)
    write_lora(tmp_path / "lora.safetensors")
    data, port = tmp_path / "data", free_port()
    up = ["up", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    with command(up, log=tmp_path / "up.txt") as process, Watch(process.pid).watching() as watch:
        until_healthy(port, log=tmp_path / "up.txt")
        with connect(port, data) as client:
            model = client.artifacts.upload(tmp_path / "sd15").name
            lora = client.artifacts.upload(tmp_path / "lora.safetensors", kind=Kind.LORA).name
            single = done(
                client, client.convert(converter_pb2.ConvertRequest(source=model, to=converter_pb2.FORMAT_SINGLE_FILE)), "single_file"
            )
            back = done(client, client.convert(converter_pb2.ConvertRequest(source=single, to=converter_pb2.FORMAT_DIFFUSERS)), "model")
            merge = converter_pb2.MergeRequest(base=single, loras=[converter_pb2.LoraRatio(lora=lora, ratio=0.5)])
            merged = done(client, client.merge(merge), "single_file")
            before, after = ({f.path: f.sha256 for f in client.artifacts.get(name).files} for name in (model, back))
            weights = "unet/diffusion_pytorch_model.safetensors"
            assert before[weights] == after[weights], "a round trip is bit-equal"
            compiled = compiler_pb2.CompileRequest(model=merged, profile=compiler_pb2.ShapeProfile(batch_sizes=[2]))
            engine = done(client, client.compile(compiled), "engine")
            client.deployments.create("sd15", server_pb2.Deployment(model=merged, serve_eager=False, compile=False))
            list(client.deployments.wait("sd15"))
            request = image_pb2.GenerateRequest(deployment="sd15", prompt="a noto emoji of a fox", steps=2, seed=1)
            *_, picture = client.generate(request)
            assert isinstance(picture, image_pb2.GeneratedImage)
            assert Image.open(io.BytesIO(picture.png)).size == (512, 512)
            assert picture.engine.startswith(engine)
    print(f"peak {watch.peak_bytes / 1e9:.1f} GB")
    assert watch.peak_bytes < LIMIT_BYTES
