"""What all tests share: folders with fakes beside the tests are importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "unit" / "jobs"))
sys.path.append(str(Path(__file__).parent / "pipeline"))
