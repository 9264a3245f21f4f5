from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atelier.engines.detect import LEVELS, cpu_product, detect, driver_branch, product_label, public, read_cpu_flags

V2, V3, V4 = LEVELS["v2"], LEVELS["v2"] | LEVELS["v3"], LEVELS["v2"] | LEVELS["v3"] | LEVELS["v4"]


@pytest.mark.parametrize(
    ("flags", "machine", "product"),
    [
        (V4, "x86_64", "cpu-x86-64-v4"),
        (V3, "x86_64", "cpu-x86-64-v3"),
        (V4 - {"avx2"}, "x86_64", "cpu-x86-64-v2"),
        (V2, "AMD64", "cpu-x86-64-v2"),
        (set(), "x86_64", "cpu-x86-64"),
        (set(), "aarch64", "cpu-aarch64"),
    ],
)
def test_a_processor_is_named_by_its_level(flags: set[str], machine: str, product: str) -> None:
    assert cpu_product(flags, machine) == product


def test_a_gpu_is_named_as_its_node_label_is() -> None:
    assert product_label("NVIDIA A10") == "NVIDIA-A10"
    assert product_label("NVIDIA H100 80GB HBM3") == "NVIDIA-H100-80GB-HBM3"


@pytest.mark.parametrize(("answer", "branch"), [("580.65.06\n580.65.06\n", "580"), ("", ""), ("\n", ""), ("No devices were found\n", "")])
def test_a_driver_is_known_by_its_branch(answer: str, branch: str) -> None:
    assert driver_branch(answer) == branch


def test_flags_are_those_of_the_first_processor(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert read_cpu_flags(path) == {"fpu", "avx2"}
    assert read_cpu_flags(tmp_path / "none") == set()


def test_this_machine_has_a_fingerprint() -> None:
    found = detect("cpu")
    assert found.device == "cpu"
    assert found.torch == public(found.torch)
    assert {"inductor", "openvino"} <= found.backends.keys()
    assert found.capability == ",".join(sorted(found.capability.split(",")))


def test_a_processor_is_detected_without_torch() -> None:
    script = "import sys; from atelier.engines.detect import detect; detect('cpu'); print(sorted({'torch', 'openvino'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
