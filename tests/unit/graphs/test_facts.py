from __future__ import annotations

from typing import Any

import pytest

from atelier import base_model
from atelier.graphs.facts import from_configs, read_facts
from atelier.graphs.files import read_config


@pytest.fixture
def configs() -> dict[str, dict[str, Any]]:
    return {part: read_config(base_model.folder(), part) for part in ("unet", "vae", "text_encoder", "scheduler")}


def test_the_base_model_makes_pictures_of_128_pixels() -> None:
    facts = read_facts(base_model.folder())
    assert (facts.width, facts.height, facts.vae_scale_factor, facts.picture_multiple) == (128, 128, 8, 64)
    assert facts.scaling_factor == pytest.approx(0.44653, abs=1e-4)


def test_what_a_config_leaves_out_has_the_default(configs: dict[str, dict[str, Any]]) -> None:
    del configs["vae"]["scaling_factor"]
    del configs["scheduler"]["prediction_type"]
    facts = from_configs(configs)
    assert (facts.scaling_factor, facts.prediction_type) == (0.18215, "epsilon")


def test_sizes_may_differ_in_width_and_height(configs: dict[str, dict[str, Any]]) -> None:
    configs["unet"]["sample_size"] = [16, 24]
    facts = from_configs(configs)
    assert (facts.height, facts.width) == (128, 192)


def test_parts_that_do_not_fit_each_other_are_refused(configs: dict[str, dict[str, Any]]) -> None:
    configs["text_encoder"]["hidden_size"] = 768
    with pytest.raises(ValueError, match="the UNet expects text embeddings of width 128, the text encoder has 768"):
        from_configs(configs)


def test_another_shape_of_unet_is_refused(configs: dict[str, dict[str, Any]]) -> None:
    configs["unet"]["addition_embed_type"] = "text_time"
    with pytest.raises(ValueError, match="no added embeddings"):
        from_configs(configs)
