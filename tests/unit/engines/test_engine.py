from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atelier.engines import engine as engines
from atelier.engines.detect import detect
from atelier.engines.manifest import Backend
from atelier.errors import AtelierError


@pytest.mark.parametrize("backend", [Backend.OPENVINO, Backend.INDUCTOR])
def test_an_engine_of_another_machine_is_refused_before_its_files_are_read(tiny: Any, backend: Backend, tmp_path: Path) -> None:
    here = detect("cpu")
    with pytest.raises(AtelierError) as caught:
        engines.load(tmp_path / "none", manifest=tiny.manifest(backend), fingerprint=replace(here, torch="2.15.0"))
    assert caught.value.reason == "ENGINE_FINGERPRINT_MISMATCH"
    assert caught.value.metadata == {"wanted_torch": here.torch, "found_torch": "2.15.0"}
