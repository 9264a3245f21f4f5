from __future__ import annotations

import pytest

from atelier.server.rows import MAX_EAGER_ROWS, Costs, bucket


@pytest.mark.parametrize(("rows", "wanted"), [(1, 2), (2, 2), (3, 4), (5, 4), (6, 8), (10, 8), (12, 16), (16, 16), (40, 16)])
def test_a_batch_is_padded_only_where_rows_nearly_fill_it(rows: int, wanted: int) -> None:
    assert bucket(rows, (2, 4, 8, 16), kind="engine", costs=Costs()) == wanted


def test_what_was_measured_decides_over_padding() -> None:
    costs = Costs()
    costs.record("flat", 4, 0.030)
    costs.record("flat", 8, 0.031)
    costs.record("steep", 4, 0.030)
    costs.record("steep", 8, 0.060)
    assert bucket(5, (4, 8), kind="flat", costs=costs) == 8
    assert bucket(7, (4, 8), kind="steep", costs=costs) == 4


def test_eager_takes_any_number() -> None:
    assert bucket(3, (), kind="eager", costs=Costs()) == bucket(30, (), kind="eager", costs=Costs()) == MAX_EAGER_ROWS


def test_company_pays_where_rows_in_it_are_cheaper() -> None:
    costs = Costs()
    assert costs.company_pays("engine", alone=(2, 2), together=(4, 4)), "nothing is known yet"
    for batch, seconds in {2: 0.018, 4: 0.031, 8: 0.057}.items():
        costs.record("engine", batch, seconds)
    assert not costs.company_pays("engine", alone=(2, 2), together=(4, 4))
    assert costs.company_pays("engine", alone=(2, 2), together=(8, 8))
    assert not costs.company_pays("engine", alone=(2, 2), together=(6, 8))


def test_a_slow_forward_is_no_reason_to_change() -> None:
    costs = Costs()
    costs.record("engine", 2, 0.018)
    costs.record("engine", 8, 0.057)
    costs.record("engine", 2, 1.0)
    assert not costs.company_pays("engine", alone=(2, 2), together=(6, 8))
