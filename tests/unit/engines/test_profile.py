from __future__ import annotations

import pytest

from atelier.engines.profile import ShapeProfile


def test_rows_go_into_the_smallest_batch_that_takes_them() -> None:
    profile = ShapeProfile(width=64, height=64, batch_sizes=(2, 4, 8))
    assert [profile.bucket(rows) for rows in (1, 2, 3, 8, 9)] == [2, 2, 4, 8, 8]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"width": 100}, "width must be a multiple of 64 between 64 and 2048, got 100"),
        ({"height": 0}, "height must be a multiple"),
        ({"height": 4096}, "height must be a multiple"),
        ({"batch_sizes": ()}, "batch_sizes must have 1 to 8 entries, got 0"),
        ({"batch_sizes": (4, 2)}, r"batch_sizes must rise, got \[4, 2\]"),
        ({"batch_sizes": (2, 2)}, "batch_sizes must rise"),
        ({"batch_sizes": (0, 2)}, "batch_sizes must lie between 1 and 62"),
        ({"batch_sizes": (2, 64)}, "batch_sizes must lie between 1 and 62"),
    ],
)
def test_what_no_engine_can_take_is_refused(changes: dict[str, object], word: str) -> None:
    values: dict[str, object] = {"width": 64, "height": 64, **changes}
    with pytest.raises(ValueError, match=word):
        ShapeProfile(**values)  # type: ignore[arg-type]


def test_a_profile_survives_json() -> None:
    profile = ShapeProfile(width=128, height=64, batch_sizes=(2, 8))
    assert ShapeProfile.from_json(profile.to_json()) == profile
    assert profile.key == "128x64-b2.8"
