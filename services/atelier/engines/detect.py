"""The fingerprint of the machine that this process runs on."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from atelier.engines.fingerprint import Fingerprint

LEVELS = {
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    "v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
}
"""Flags of the x86-64 levels (psABI), in the kernel's words; a level asks for those below it too."""
FLAGS = re.compile(r"avx2|avx512f|avx512_bf16|avx512_vnni|amx_\w+")
"""Flags that decide which instructions a backend chooses."""
QUERY_SECONDS = 20.0
"""How long the driver may take to answer; it is slow where no process keeps it loaded."""


def detect(device: str = "auto") -> Fingerprint:
    """The fingerprint of `cpu`, `cuda` or, with `auto`, of the GPU where there is one.

    Raises ValueError where PyTorch is missing, or where `cuda` is asked for and there is none.
    """
    torch_version = _version("torch")
    if not torch_version:
        raise ValueError("PyTorch is not installed here")
    driver = query_driver() if device in ("auto", "cuda") else ""
    gpu = _torch_gpu() if driver else None
    if gpu is not None:
        return Fingerprint(
            device="cuda",
            product=product_label(gpu.name),
            capability=f"{gpu.major}.{gpu.minor}",
            driver=driver,
            torch=public(torch_version),
            backends=_cuda_backends(torch_version),
        )
    if device == "cuda":
        raise ValueError("there is no CUDA device here that PyTorch can use")
    flags = read_cpu_flags()
    return Fingerprint(
        device="cpu",
        product=cpu_product(flags, platform.machine()),
        capability=",".join(sorted(flag for flag in flags if FLAGS.fullmatch(flag))),
        torch=public(torch_version),
        backends=_cpu_backends(torch_version),
    )


def cpu_product(flags: set[str], machine: str) -> str:
    """`cpu-x86-64-v3` by the flags; for other processors `cpu-` and the machine's name."""
    if machine not in ("x86_64", "AMD64"):
        return f"cpu-{machine.lower()}"
    needed: set[str] = set()
    reached = ""
    for level in ("v2", "v3", "v4"):
        needed |= LEVELS[level]
        reached = f"-{level}" if needed <= flags else reached
    return f"cpu-x86-64{reached}"


def read_cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The instruction flags that the kernel lists for the first processor; none where there is no such file."""
    if not path.is_file():
        return set()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", path.read_text(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def query_driver() -> str:
    """The branch of NVIDIA's driver, as the driver tells; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return driver_branch(answer)


def driver_branch(answer: str) -> str:
    """`580.65.06`, a line for each GPU -> `580`."""
    match = re.match(r"(\d+)\.\d", answer)
    return match[1] if match else ""


def product_label(name: str) -> str:
    """`NVIDIA A10` -> `NVIDIA-A10`, as GPU feature discovery writes it into labels."""
    return "-".join(name.split())


def public(version: str) -> str:
    """A version without its local part: `2.14.1+cpu` -> `2.14.1`."""
    return version.split("+")[0]


def _torch_gpu() -> Any:
    """The GPU that PyTorch computes on, which the driver's own list may not begin with; None where it can use none."""
    torch = importlib.import_module("torch")
    return torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None


def _cpu_backends(torch_version: str) -> dict[str, str]:
    found = {"inductor": public(torch_version)}
    if openvino := _version("openvino"):
        found["openvino"] = openvino
    return found


def _cuda_backends(torch_version: str) -> dict[str, str]:
    # Kernels of a package call the CUDA libraries that torch was built with, so the local part (`+cu130`) counts here.
    found = {"inductor": torch_version}
    if _version("torch-tensorrt"):
        try:
            found["tensorrt"] = str(importlib.import_module("tensorrt").__version__)
        except Exception:  # its own loader raises plain Exception and OSError where libraries are missing
            return found
    return found


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
