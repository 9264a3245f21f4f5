from __future__ import annotations

from pathlib import Path

import pytest

from atelier import base_model
from atelier.formats import single_file


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model as a single file."""
    path = tmp_path_factory.mktemp("one") / "one.safetensors"
    single_file.from_diffusers(base_model.folder(), path)
    return path
