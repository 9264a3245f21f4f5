"""What must be equal between the machine that compiled an engine and the one that serves it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from atelier import errors


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A device and the software on it.

    A machine's has every backend it knows, an engine's only the one that built it.
    """

    device: str
    """`cpu` or `cuda`."""
    product: str
    """`NVIDIA-A10` (GPU feature discovery's label), `cpu-x86-64-v4`."""
    capability: str
    """`8.6`; for a CPU its instruction flags, sorted, with commas."""
    driver: str = ""
    """Driver branch, `580`; empty on a CPU."""
    torch: str
    """`2.14.1`, without the local part of the version."""
    backends: Mapping[str, str] = field(default_factory=dict)
    """Backend to version."""

    @property
    def label(self) -> str:
        """The value of the label `atelier.dev/gpu`: the product, for a CPU just `cpu`."""
        return "cpu" if self.device == "cpu" else self.product[:63]

    @property
    def key(self) -> str:
        """A short name that is equal where the fingerprints are."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def has_flag(self, flag: str) -> bool:
        """Whether a CPU has this instruction flag."""
        return self.device == "cpu" and flag in self.capability.split(",")

    def only(self, backend: str) -> Fingerprint:
        """This machine's fingerprint for engines of one backend. ValueError where the backend is not there."""
        if backend not in self.backends:
            raise ValueError(f"there is no {backend} here, only {', '.join(sorted(self.backends)) or 'eager PyTorch'}")
        return replace(self, backends={backend: self.backends[backend]})

    def differences(self, found: Fingerprint) -> dict[str, tuple[str, str]]:
        """Where `found` is not what this asks for: name -> (wanted, found). Backends that this does not ask for do not count."""
        pairs = {name: (getattr(self, name), getattr(found, name)) for name in ("device", "product", "capability", "driver", "torch")}
        pairs |= {name: (version, found.backends.get(name, "none")) for name, version in self.backends.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def check(self, found: Fingerprint) -> None:
        """Raises FAILED_PRECONDITION (ENGINE_FINGERPRINT_MISMATCH) that names what is wanted and what was found."""
        differences = self.differences(found)
        if not differences:
            return
        sentence = ", ".join(f"{name} {wanted or 'none'} (found {got or 'none'})" for name, (wanted, got) in differences.items())
        wanted = {f"wanted_{name}": pair[0] for name, pair in differences.items()}
        got = {f"found_{name}": pair[1] for name, pair in differences.items()}
        message = f"the engine was built for {sentence}; compile it for this device"
        raise errors.failed_precondition("ENGINE_FINGERPRINT_MISMATCH", message, **wanted, **got)

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "device": self.device,
            "product": self.product,
            "capability": self.capability,
            "driver": self.driver,
            "torch": self.torch,
            "backends": dict(self.backends),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fingerprint:
        """Reads what `to_json` wrote."""
        return cls(**content)


def is_of(label: str, found: str) -> bool:
    """Whether the product `found` on a machine is that of a node's label `nvidia.com/gpu.product`.

    A label may end in `-SHARED` (time slicing), which a device does not know of; a slice of a GPU (MIG, strategy mixed) is named more
    closely than its node.
    """
    product = label.removesuffix("-SHARED")
    return found == product or found.startswith(f"{product}-MIG-")
