from __future__ import annotations

import pytest

from atelier.server.rows import MAX_EAGER_ROWS, bucket


@pytest.mark.parametrize(("rows", "wanted"), [(1, 2), (2, 2), (3, 4), (5, 4), (6, 8), (10, 8), (12, 16), (16, 16), (40, 16)])
def test_a_batch_is_padded_only_where_rows_nearly_fill_it(rows: int, wanted: int) -> None:
    assert bucket(rows, (2, 4, 8, 16)) == wanted


def test_eager_takes_any_number() -> None:
    assert bucket(3, ()) == bucket(30, ()) == MAX_EAGER_ROWS
