"""A tiny model, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.graphs.random_model import write_random_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "tiny"
    write_random_model(folder)
    return folder
