"""What can be told of the images without building them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "images" / "Dockerfile").read_text()
TARGETS = ("control", "trainer", "converter", "compiler", "node")


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), flags=re.MULTILINE))


def ancestors(stage: str) -> list[str]:
    parents = {name: parent for parent, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)}
    found = [stage]
    while found[-1] in parents:
        found.append(parents[found[-1]])
    return found


@pytest.mark.parametrize("name", ["control", "ml"])
def test_what_an_image_installs_is_a_part_of_the_lock_with_its_hashes(name: str) -> None:
    path = ROOT / "images" / f"{name}.txt"
    own, whole = pins(path), pins(ROOT / "constraints.txt")
    assert own and own.items() <= whole.items()
    entries = re.split(r"\n(?=[a-z0-9])", path.read_text().strip())
    assert len(entries) == len(own) and all("--hash=sha256:" in entry for entry in entries)


def test_the_control_image_has_neither_torch_nor_ray() -> None:
    assert not {"torch", "ray", "diffusers", "transformers", "openvino", "numpy"} & pins(ROOT / "images" / "control.txt").keys()
    stage = DOCKERFILE[DOCKERFILE.index(" AS control\n") :].split("\nFROM ")[0]
    assert "ml" not in ancestors("control") and set(re.findall(r"--from=(\S+)", stage)) == {"slim", "build-control", "package"}


def test_workers_and_nodes_stand_on_one_layer() -> None:
    assert all("ml" in ancestors(target) for target in TARGETS if target != "control")
    # The package lies on top of it, so that another code leaves it as it is.
    assert DOCKERFILE[DOCKERFILE.index(" AS ml\n") :].split("\nFROM ")[0].count("package") == 0
    assert DOCKERFILE.count("COPY --from=package /package /") == 3
    # A compiler for those who compile, and for nobody else.
    assert {target for target in TARGETS if "tools" in ancestors(target)} == {"trainer", "compiler"}


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_runs_as_nobody_in_particular(target: str) -> None:
    stage = DOCKERFILE[DOCKERFILE.index(f" AS {target}\n") :].split("\nFROM ")[0]
    assert "USER 10001:0" in stage and re.search(r'^ENTRYPOINT \["\w+"\]$', stage, flags=re.MULTILINE)
    homes = [part for part in DOCKERFILE.split("\nFROM ") if "ENV HOME=/tmp" in part]
    assert len(homes) == 2  # the base of all, and control, which begins from scratch


def test_nothing_is_fetched_but_packages() -> None:
    assert not re.search(r"^ADD |curl|wget|https?://", DOCKERFILE, flags=re.MULTILINE)
