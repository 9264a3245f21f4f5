"""A scene of a test alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_server import ApiServer
from kubernetes_scene import Scene


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A trainer that starts workers on an API server in miniature."""
    with ApiServer().running() as api:
        scene = Scene(tmp_path, api)
        yield scene
        scene.database.close()
