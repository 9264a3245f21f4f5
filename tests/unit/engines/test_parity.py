from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atelier.engines.manifest import Precision
from atelier.engines.parity import Inputs, compare, relative_l2, run_rows

INPUTS = Inputs.make(sample=(4, 8, 8), context=(77, 16), rows=8)


def exact(sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
    return sample * timesteps[:, None, None, None] + context.mean()


def plain(sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
    return sample * (1 + timesteps[:, None, None, None])


def off_at_the_end(sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
    return plain(sample, timesteps, context) * (1 + 0.01 * (timesteps == 1))[:, None, None, None]


def test_inputs_are_the_same_at_every_call_and_have_four_timesteps() -> None:
    again = Inputs.make(sample=(4, 8, 8), context=(77, 16), rows=8)
    assert torch.equal(INPUTS.sample, again.sample)
    assert INPUTS.timesteps.tolist() == [1, 334, 666, 999] * 2


def test_the_worst_row_counts() -> None:
    result = compare(off_at_the_end, plain, inputs=INPUTS, batch_sizes=(2, 4, 8), precision=Precision.FP32)
    assert result.errors == pytest.approx({2: 0.01, 4: 0.01, 8: 0.01}, rel=1e-3)
    assert not result.passed
    assert compare(off_at_the_end, plain, inputs=INPUTS, batch_sizes=(2, 4, 8), precision=Precision.BF16).passed


def test_small_batches_are_compared_at_all_four_timesteps() -> None:
    seen: list[float] = []

    def watching(sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
        seen.extend(timesteps.tolist())
        return plain(sample, timesteps, context)

    assert compare(watching, plain, inputs=INPUTS, batch_sizes=(2,), precision=Precision.FP32).passed
    assert sorted(seen) == [1, 334, 666, 999]


def test_rows_of_a_batch_that_does_not_divide_them_come_back_in_order() -> None:
    assert torch.equal(run_rows(plain, INPUTS, batch=3, rows=8), plain(INPUTS.sample, INPUTS.timesteps, INPUTS.encoder_hidden_states))


def test_what_is_not_finite_never_passes() -> None:
    def broken(sample: Tensor, timesteps: Tensor, context: Tensor, /) -> Tensor:
        return plain(sample, timesteps, context) * torch.where(timesteps == 666, torch.nan, 1.0)[:, None, None, None]

    result = compare(broken, plain, inputs=INPUTS, batch_sizes=(4,), precision=Precision.BF16)
    assert not result.passed
    assert "batch 4: nan" in str(result)


def test_relative_l2_is_a_row_s_error_over_its_length() -> None:
    expected = torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    assert relative_l2(expected + torch.tensor([[0.0, 0.5], [0.0, 0.5]]), expected) == pytest.approx(0.1)
