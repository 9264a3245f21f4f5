"""A pickled LoRA (`.bin`) becomes safetensors, in a process that can do little else: `weights_only`, no environment, limits."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from atelier.artifacts.safety import Format, sniff

TIMEOUT_SECONDS = 120
MAX_MEMORY_BYTES = 12 << 30
MAX_FILE_BYTES = 4 << 30

SCRIPT = """
import sys
sys.path[:] = sys.argv[3].split(":")
import torch
from safetensors.torch import save_file
loaded = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
if not isinstance(loaded, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in loaded.items()):
    sys.exit("it holds something else than named tensors")
save_file({name: tensor.contiguous().clone() for name, tensor in loaded.items()}, sys.argv[2], metadata={"format": "pt"})
"""


def to_safetensors(source: Path, target: Path) -> None:
    """Reads a pickle of named tensors and writes them as safetensors. Raises ValueError for anything else; none of its code is run."""
    form = sniff(source)
    if form is not Format.PICKLE:
        raise ValueError(f"it is {form}, not a pickle of tensors")
    paths = ":".join(path for path in sys.path if path)
    command = [sys.executable, "-I", "-c", SCRIPT, str(source), str(target), paths]
    try:
        done = subprocess.run(
            command, env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, preexec_fn=_limit, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it took more than {TIMEOUT_SECONDS} seconds") from None
    if done.returncode != 0:
        target.unlink(missing_ok=True)
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        unsafe = "Unsupported global" in done.stderr or "weights_only" in done.stderr.lower() or "WeightsUnpickler" in done.stderr
        raise ValueError("it wants to run code, and was not read" if unsafe else f"it cannot be read: {last[:200]}")


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_SECONDS, TIMEOUT_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
