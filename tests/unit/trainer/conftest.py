"""What the trainer's tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atelier.graphs.random_model import write_random_model

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    write_random_model(folder)
    return folder
