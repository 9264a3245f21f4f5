"""The losses against the plainest form of the papers' equations, in float64."""

from __future__ import annotations

import pytest
import torch

from atelier.trainer import loss

ALPHAS = torch.linspace(0.999, 0.005, 1000)


def test_noise_is_added_by_the_equation() -> None:
    latents, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    found = loss.add_noise(latents, noise, timesteps, alphas_cumprod=ALPHAS)
    for row, t in enumerate(timesteps):
        a = float(ALPHAS[t])
        wanted = a**0.5 * latents[row].double() + (1 - a) ** 0.5 * noise[row].double()
        assert torch.allclose(found[row].double(), wanted, atol=1e-6)


def test_diffusers_scheduler_adds_the_same_noise_and_wants_the_same_velocity() -> None:
    from diffusers import DDPMScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(**config)
    alphas = loss.alphas_cumprod_of(dict(config))
    latents, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    ours = loss.add_noise(latents, noise, timesteps, alphas_cumprod=alphas)
    assert torch.allclose(ours, scheduler.add_noise(latents, noise, timesteps), atol=1e-6)
    velocity = loss.target(latents, noise, timesteps, alphas_cumprod=alphas, prediction_type="v_prediction")
    assert torch.allclose(velocity, scheduler.get_velocity(latents, noise, timesteps), atol=1e-6)


def test_an_unknown_prediction_type_is_refused() -> None:
    one = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="sample"):
        loss.target(one, one, torch.tensor([0]), alphas_cumprod=ALPHAS, prediction_type="sample")


def test_min_snr_of_a_velocity_is_finite_without_signal() -> None:
    alphas = torch.tensor([0.9, 0.5, 0.0])
    found = loss.min_snr_weights(torch.tensor([0, 1, 2]), alphas_cumprod=alphas, gamma=5.0, prediction_type="v_prediction")
    assert found.tolist() == pytest.approx([5 / 10, 1 / 2, 0], abs=1e-6)


def test_prior_preservation_is_subject_plus_weighted_prior() -> None:
    prediction, wanted = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    found = loss.prior_preservation_loss(prediction, wanted, weight=0.3)
    error = (prediction - wanted).double() ** 2
    assert float(found) == pytest.approx(float(error[:2].mean() + 0.3 * error[2:].mean()), rel=1e-5)


def test_min_snr_weighs_both_halves() -> None:
    prediction, wanted = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    timesteps = torch.tensor([5, 700, 20, 990])
    weights = loss.min_snr_weights(timesteps, alphas_cumprod=ALPHAS, gamma=5.0, prediction_type="epsilon")
    snr = [float(ALPHAS[t]) / (1 - float(ALPHAS[t])) for t in timesteps]
    assert weights.tolist() == pytest.approx([min(s, 5.0) / s for s in snr], rel=1e-5)
    rows = ((prediction - wanted).double() ** 2).mean(dim=(1, 2, 3)) * weights.double()
    found = loss.prior_preservation_loss(prediction, wanted, weight=2.0, row_weights=weights)
    assert float(found) == pytest.approx(float(rows[:2].mean() + 2 * rows[2:].mean()), rel=1e-5)
