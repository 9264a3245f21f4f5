"""Names, defaults and checks of a training request."""

from __future__ import annotations

import pytest

from atelier.errors import AtelierError
from atelier.trainer.requests import completed, to_spec
from atelier.trainer.spec import DEFAULTS, Method
from atelier.v1 import trainer_pb2


def request(**fields: object) -> trainer_pb2.TrainRequest:
    values = {
        "method": trainer_pb2.METHOD_DREAMBOOTH_LORA,
        "pretrained_model_name_or_path": "base",
        "instance_data_dir": "pictures",
        "instance_prompt": "a photo of sks dog",
    }
    return trainer_pb2.TrainRequest(**{**values, **fields})  # type: ignore[arg-type]


def test_what_is_left_out_gets_the_defaults_of_the_scripts() -> None:
    spec, warnings = to_spec(request(), drawn_seed=7)
    assert (spec.learning_rate, spec.rank, spec.train_batch_size, spec.resolution, spec.lr_warmup_steps) == (5e-4, 4, 4, 512, 500)
    assert (spec.seed, warnings) == (7, [])
    spec, _ = to_spec(request(method=trainer_pb2.METHOD_DREAMBOOTH))
    assert (spec.learning_rate, spec.checkpoints_total_limit, spec.validation_steps) == (5e-6, 2, 100)


def test_a_seed_of_zero_is_a_seed() -> None:
    assert to_spec(request(seed=0), drawn_seed=7)[0].seed == 0


def test_every_bad_field_is_named_at_once() -> None:
    bad = request(max_train_steps=0, resolution=100, learning_rate=float("nan"), lr_scheduler="sideways", instance_prompt="")
    with pytest.raises(AtelierError) as caught:
        to_spec(bad)
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"max_train_steps", "resolution", "learning_rate", "lr_scheduler", "instance_prompt"}


def test_a_field_of_another_method_is_refused() -> None:
    with pytest.raises(AtelierError, match="rank: does not belong to DREAMBOOTH"):
        to_spec(request(method=trainer_pb2.METHOD_DREAMBOOTH, rank=4))


def test_class_fields_without_prior_preservation_are_one_warning() -> None:
    spec, warnings = to_spec(request(class_prompt="a photo of dog", num_class_images=50))
    assert not spec.with_prior_preservation
    assert warnings == ["class_prompt, num_class_images: ignored without with_prior_preservation"]


def test_a_completed_request_means_the_same_and_leaves_nothing_out() -> None:
    spec, _ = to_spec(request(rank=8), drawn_seed=3)
    full = completed(request(rank=8), spec)
    again, _ = to_spec(full, drawn_seed=99)
    assert again == spec
    missing = [n for n, v in DEFAULTS[Method.DREAMBOOTH_LORA].items() if v is not None and not full.HasField(n)]
    assert missing == []


def test_steps_are_counted_as_the_scripts_count_epochs() -> None:
    spec, _ = to_spec(request(num_train_epochs=3, train_batch_size=4, gradient_accumulation_steps=2))
    assert spec.steps(num_instance=10, num_class=0) == 3 * 2  # ceil(ceil(10 / 4) / 2) updates an epoch
