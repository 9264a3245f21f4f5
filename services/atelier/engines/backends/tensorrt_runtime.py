"""TensorRT engines at work: plans refitted with a model's weights, and then checked.

A refit always sets all weights (a partial one leaves a mixture), and since TensorRT's documentation says that a refittable engine may
drop a bias, `open` compares every refit with eager PyTorch and refuses one that differs. Needs TensorRT alone, not Torch-TensorRT.

Not run so far, since TensorRT's libraries could not be had: written against TensorRT 11's documentation.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from atelier import errors
from atelier.engines import parity
from atelier.engines.backends.tensorrt import CONSTANTS_FILE, MAP_FILE
from atelier.engines.eager import EagerRunner
from atelier.engines.manifest import EngineManifest
from atelier.engines.profile import ShapeProfile
from atelier.engines.program import DTYPES
from atelier.graphs.model import empty_part, fill
from atelier.graphs.weights import check_weights

OUTPUT = "output0"


def load(folder: Path, *, manifest: EngineManifest, device: str = "cuda") -> TensorRTEngine:
    """The engine in `folder`. FAILED_PRECONDITION (TENSORRT_NOT_INSTALLED) where TensorRT is missing."""
    try:
        trt = importlib.import_module("tensorrt")
    except Exception as error:
        raise errors.failed_precondition("TENSORRT_NOT_INSTALLED", "TensorRT is not installed here; serve eager or inductor") from error
    return TensorRTEngine(folder, manifest=manifest, device=device, trt=trt)


class TensorRTEngine:
    """See `engine.Engine`. `open` takes seconds: it deserializes and refits a plan for each batch, and compares with eager PyTorch."""

    can_bind = False

    def __init__(self, folder: Path, *, manifest: EngineManifest, device: str, trt: Any) -> None:
        self.manifest = manifest
        self._trt = trt
        self._folder = folder
        self._device = torch.device(device)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        content = json.loads((folder / MAP_FILE).read_bytes())
        self._inputs: dict[str, list[int]] = content["inputs"]
        self._shapes = {name: tuple(shape) for name, shape in content["weights"].items()}
        self._maps: dict[str, dict[str, str]] = content["plans"]

    @property
    def profile(self) -> ShapeProfile:
        """See `engine.Engine`."""
        return self.manifest.profile

    def open(self, weights: Mapping[str, Tensor]) -> TensorRTRunner:
        """See `engine.Engine`; also ValueError where the refitted plans do not agree with eager PyTorch."""
        check_weights(weights, self._shapes)
        own = {name: tensor.detach().to(self._device, DTYPES[self.manifest.precision]) for name, tensor in weights.items()}
        constants = load_file(self._folder / CONSTANTS_FILE, device=str(self._device))
        engines = {batch: self._refitted(batch, own, constants) for batch in self.profile.batch_sizes}
        runner = TensorRTRunner(self._trt, engines, inputs=self._inputs, device=self._device)
        self._check(runner, own)
        return runner

    def bind(self, weights: Mapping[str, Tensor], *, batch_sizes: tuple[int, ...] = ()) -> TensorRTRunner:
        """See `engine.Engine`: always ValueError."""
        raise ValueError("a TensorRT engine has one form only")

    def _refitted(self, batch: int, weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Any:
        trt = self._trt
        engine = self._runtime.deserialize_cuda_engine((self._folder / f"batch-{batch}.plan").read_bytes())
        if engine is None:  # TensorRT's way of saying that version or device do not fit
            raise ValueError(f"TensorRT {trt.__version__} does not take the plan for batch {batch}; compile it again")
        refitter = trt.Refitter(engine, trt.Logger(trt.Logger.WARNING))
        sources = self._sources(batch, weights, constants)
        kept = []
        for name in refitter.get_all_weights():
            if name not in sources:
                raise ValueError(f"nobody knows the weight {name!r} of the plan for batch {batch}; compile it again")
            source = sources[name]
            prototype = refitter.get_weights_prototype(name)
            tensor = source.to(_torch_dtype(trt, prototype.dtype)).contiguous()
            kept.append(tensor)
            value = trt.Weights(prototype.dtype, tensor.data_ptr(), tensor.numel())
            if not refitter.set_named_weights(name, value, trt.TensorLocation.DEVICE):
                raise ValueError(f"TensorRT refused the weight {name!r} for batch {batch}")
        torch.cuda.synchronize(self._device)
        if refitter.get_missing_weights() or not refitter.refit_cuda_engine():
            raise ValueError(f"TensorRT refused the weights for batch {batch}")
        return engine

    def _sources(self, batch: int, weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What goes into a plan, by the plan's names: the model's weights, and the tables that were built in."""
        prefix = f"{batch}/"
        tables = {name.removeprefix(prefix): tensor for name, tensor in constants.items() if name.startswith(prefix)}
        return tables | {plan_name: weights[name] for plan_name, name in self._maps[str(batch)].items()}

    def _check(self, runner: TensorRTRunner, weights: Mapping[str, Tensor]) -> None:
        unet = empty_part(self._folder.parent, self._folder.name)
        fill(unet, {name: tensor.float() for name, tensor in weights.items()}, part="unet")
        sample, _, context = self._inputs.values()
        rows = max(parity.NUM_TIMESTEPS, *self.profile.batch_sizes)
        inputs = parity.Inputs.make(sample=sample, context=context, rows=rows, device=self._device)
        result = parity.compare(
            runner,
            EagerRunner(unet.to(self._device)),
            inputs=inputs,
            batch_sizes=self.profile.batch_sizes,
            precision=self.manifest.precision,
        )
        if not result.passed:
            raise ValueError(f"the refitted engine does not agree with eager PyTorch: {result}")


class TensorRTRunner:
    """See `engine.Runner`."""

    def __init__(self, trt: Any, engines: Mapping[int, Any], *, inputs: Mapping[str, list[int]], device: torch.device) -> None:
        self._engines = engines
        self._contexts = {batch: engine.create_execution_context() for batch, engine in engines.items()}
        self._inputs = inputs
        self._device = device
        first = next(iter(engines.values()))
        self._dtypes = {name: _torch_dtype(trt, first.get_tensor_dtype(name)) for name in (*inputs, OUTPUT)}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """See `engine.Runner`."""
        batch = inputs[0].shape[0]
        if batch not in self._contexts:
            raise ValueError(f"a batch of {batch} is not among the engine's {sorted(self._contexts)}")
        context = self._contexts[batch]
        kept = []
        for (name, shape), tensor in zip(self._inputs.items(), inputs, strict=True):
            if tuple(tensor.shape) != (batch, *shape):
                raise ValueError(f"{name} has shape {list(tensor.shape)}, the engine takes {[batch, *shape]}")
            kept.append(tensor.to(self._device, self._dtypes[name]).contiguous())
            context.set_tensor_address(name, kept[-1].data_ptr())
        answer = torch.empty(tuple(context.get_tensor_shape(OUTPUT)), dtype=self._dtypes[OUTPUT], device=self._device)
        context.set_tensor_address(OUTPUT, answer.data_ptr())
        stream = torch.cuda.current_stream(self._device)
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        return answer.to(inputs[0].dtype)


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    table = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.BOOL: torch.bool,
    }
    return table[dtype]
