"""The fingerprint of the machine that this process runs on."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

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
    gpu = query_gpu() if device in ("auto", "cuda") else None
    if gpu and _torch_sees_cuda():
        product, driver, capability = gpu
        return Fingerprint(
            device="cuda",
            product=product,
            capability=capability,
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


def query_gpu() -> tuple[str, str, str] | None:
    """Product label, driver branch and compute capability of the first GPU, as the driver tells; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpu(answer)


def parse_gpu(answer: str) -> tuple[str, str, str] | None:
    """`NVIDIA A10, 580.65.06, 8.6` -> (`NVIDIA-A10`, `580`, `8.6`), with the name as GPU feature discovery writes it into labels."""
    fields = [field.strip() for field in answer.splitlines()[0].split(",")] if answer.strip() else []
    if len(fields) != 3:
        return None
    name, driver, capability = fields
    return "-".join(name.split()), driver.split(".")[0], capability


def public(version: str) -> str:
    """A version without its local part: `2.14.1+cpu` -> `2.14.1`."""
    return version.split("+")[0]


def _torch_sees_cuda() -> bool:
    torch = importlib.import_module("torch")
    return bool(torch.cuda.is_available())


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
