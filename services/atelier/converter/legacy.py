"""A pickled LoRA (`.bin`) becomes safetensors, in a process that can do little else: `weights_only`, no environment, limits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from atelier.artifacts.safety import Format, sniff

TIMEOUT_SECONDS = 120
MAX_MEMORY_BYTES = 12 << 30
MAX_FILE_BYTES = 4 << 30

SCRIPT = f"""
import resource, sys
for limit, most in (("AS", {MAX_MEMORY_BYTES}), ("CPU", {TIMEOUT_SECONDS}), ("FSIZE", {MAX_FILE_BYTES}), ("NOFILE", 256), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (most, most))
sys.path[:] = sys.argv[3].split(":")
import torch
from safetensors.torch import save_file
loaded = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
if not isinstance(loaded, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in loaded.items()):
    sys.exit("it holds something else than named tensors")
save_file({{name: tensor.contiguous().clone() for name, tensor in loaded.items()}}, sys.argv[2], metadata={{"format": "pt"}})
"""
"""What runs there; the limits come before anything is imported that could read the file."""


def to_safetensors(source: Path, target: Path) -> None:
    """Reads a pickle of named tensors and writes them as safetensors. Raises ValueError for anything else; none of its code is run."""
    form = sniff(source)
    if form is not Format.PICKLE:
        raise ValueError(f"it is {form}, not a pickle of tensors")
    paths = ":".join(path for path in sys.path if path)
    command = [sys.executable, "-I", "-c", SCRIPT, str(source), str(target), paths]
    try:
        done = subprocess.run(command, env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, cwd="/")
    except subprocess.TimeoutExpired:
        target.unlink(missing_ok=True)
        raise ValueError(f"reading it took more than {TIMEOUT_SECONDS} seconds") from None
    if done.returncode != 0:
        target.unlink(missing_ok=True)
        raise ValueError(_why(done.stderr))


def _why(said: str) -> str:
    if re.search(r"unsupported (global|class)|trying to load unsupported|blocked", said, re.IGNORECASE):
        return "it wants to run code, and was not read"
    if "allocate memory" in said or "MemoryError" in said:
        return f"reading it takes more memory than the {MAX_MEMORY_BYTES >> 30} GiB that are allowed"
    if "something else than named tensors" in said:
        return "it holds something else than named tensors"
    return "it cannot be read: its pickle is damaged, or holds what torch's weights_only does not load"
