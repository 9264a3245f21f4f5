"""The UNet as PyTorch runs it: what serves while there is no engine, and what engines are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class EagerRunner:
    """A runner over a diffusers UNet, in the dtype and on the device where it is. Takes any batch and size."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    @torch.no_grad()
    def __call__(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, /) -> Tensor:
        """See `engine.Runner`."""
        dtype = self._unet.dtype
        result: Tensor = self._unet(sample.to(dtype), timesteps, encoder_hidden_states.to(dtype), return_dict=False)[0]
        return result.to(sample.dtype)
