"""The model on board: a small Stable Diffusion v1-shaped model as package data, so that everything works without a download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

TAG = "base:latest"
"""The tag under which an installation knows it."""


def folder() -> Path:
    """Where it lies, in diffusers layout."""
    return Path(str(files(__package__))) / "model"
