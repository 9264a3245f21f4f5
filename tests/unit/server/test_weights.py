from __future__ import annotations

from pathlib import Path

import pytest

from atelier.graphs.random_model import write_random_model
from atelier.server.weights import Variants


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_random_model(folder)
    return folder


def test_the_least_used_model_leaves_first(tiny: Path) -> None:
    variants = Variants(quiet_seconds=lambda: 0.0, max_models=2)
    first = variants.load("first", lambda: tiny)
    variants.load("second", lambda: tiny)
    assert variants.load("first", lambda: pytest.fail("it is held")) is first
    variants.load("third", lambda: tiny)
    assert {variant.name for variant in variants.held()} == {"first", "third"}


def test_looking_at_a_model_is_no_use_of_it(tiny: Path) -> None:
    variants = Variants(quiet_seconds=lambda: 0.0, max_models=2)
    variants.load("first", lambda: tiny)
    variants.load("second", lambda: tiny)
    assert variants.get("first", use=False)
    variants.load("third", lambda: tiny)
    assert variants.get("first") is None


def test_models_that_nobody_wants_any_more_are_let_go(tiny: Path) -> None:
    variants = Variants(quiet_seconds=lambda: 0.0)
    for name in ("first", "second"):
        variants.load(name, lambda: tiny)
    variants.keep({"second", "third"})
    assert [variant.name for variant in variants.held()] == ["second"]


def test_a_model_knows_its_size(tiny: Path) -> None:
    variant = Variants(quiet_seconds=lambda: 0.0).load("tiny", lambda: tiny)
    assert variant.size_bytes == 4 * sum(
        p.numel() for part in ("unet", "vae", "text_encoder") for p in getattr(variant.model, part).parameters()
    )
