"""Versions in the images of this release: engines that were built by others are built anew under them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from atelier.engines.fingerprint import Fingerprint

VERSIONS: Mapping[str, str] = {"torch": "2.14.1", "openvino": "2026.4.1"}
"""As in the lock, which a test compares. TensorRT is not in it: its version comes with torch-tensorrt."""


def changes(kind: Fingerprint) -> dict[str, tuple[str, str]]:
    """Where nodes of a kind will be others under these images: name -> (version now, version then). A driver may change besides."""
    now = {"torch": kind.torch} | {name: version for name, version in kind.backends.items() if name in VERSIONS}
    return {name: (version, VERSIONS[name]) for name, version in now.items() if version != VERSIONS[name]}
