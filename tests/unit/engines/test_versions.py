"""What this release's images hold, and whose engines they will not run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from atelier.engines.fingerprint import Fingerprint
from atelier.engines.versions import VERSIONS, changes

LOCK = Path(__file__).parents[3] / "constraints.txt"
NODE = Fingerprint(
    device="cpu", product="cpu-x86-64-v4", capability="avx2", torch=VERSIONS["torch"],
    backends={"inductor": VERSIONS["torch"], "openvino": VERSIONS["openvino"]},
)  # fmt: skip


def test_versions_are_those_of_the_lock() -> None:
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", LOCK.read_text(), re.MULTILINE))
    assert {name: locked[name] for name in VERSIONS} == VERSIONS, "write them into services/atelier/engines/versions.py"


def test_what_changes_with_the_images_is_named() -> None:
    assert changes(NODE) == {}
    older = replace(NODE, torch="2.13.0", backends={"inductor": "2.13.0", "openvino": VERSIONS["openvino"]})
    assert changes(older) == {"torch": ("2.13.0", VERSIONS["torch"])}
    assert changes(replace(NODE, backends={"openvino": "2025.1"})) == {"openvino": ("2025.1", VERSIONS["openvino"])}
    assert changes(replace(NODE, device="cuda", backends={"inductor": "2.14.1+cu130", "tensorrt": "10.1"})) == {}
