"""Pools: named sets of like nodes, and the pool that a request names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from atelier.errors import Violation, invalid

CPU = "cpu"
"""What a pool without GPUs carries as its label."""


class Pool(BaseModel):
    """A named set of like nodes; keys are spelt as in the chart's values (`minReplicas`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    gpu: str = Field(default="", max_length=63)
    """Product label of its GPU as NVIDIA's feature discovery writes it (`NVIDIA-A10`); empty: a CPU pool."""
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=0)
    """0: the pool takes jobs only."""
    resource_name: str = "nvidia.com/gpu"
    """Resource of its devices; a MIG slice has one of its own."""
    gpus_per_replica: int = Field(default=1, ge=1)
    """Of `resource_name`; only where there is a `gpu`."""
    num_cpus: int = Field(default=0, ge=0)
    """CPUs that its Ray nodes were started with, all of which a replica takes; 0: those of this machine."""
    node_selector: Mapping[str, str] = Field(default_factory=dict)
    resources: Mapping[str, Any] = Field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    resource_claims: tuple[Mapping[str, Any], ...] = ()
    """Devices by dynamic resource allocation, instead of `resource_name`."""
    target_ongoing_requests: float = Field(default=8, gt=0)
    """Requests at a replica above which another one is wanted."""
    upscale_delay_seconds: float = Field(default=10, ge=0)
    downscale_delay_seconds: float = Field(default=300, ge=0)
    downscale_to_zero_delay_seconds: float = Field(default=300, ge=0)
    when_full: Literal["wait", "yield"] = "wait"
    """Where no device is free for a job: it waits, or the pool gives one of its own up until the job has ended."""
    serve_eager: bool = True
    """Whether a deployment that says nothing serves eager while there is no engine."""
    deployment: str = ""
    """The Kubernetes Deployment of its nodes, where the server scales it; empty: somebody else does."""

    @model_validator(mode="after")
    def _ordered(self) -> Pool:
        if self.min_replicas > self.max_replicas:
            raise ValueError("minReplicas must not be above maxReplicas")
        return self

    @property
    def label(self) -> str:
        """The value of `atelier.dev/gpu` on its nodes."""
        return self.gpu or CPU

    @property
    def gpus(self) -> int:
        """Devices of a replica, or of a job's worker."""
        return self.gpus_per_replica if self.gpu else 0


def read_pools(path: Path) -> list[Pool]:
    """The pools in a file, by name. Raises INVALID_ARGUMENT naming all that is wrong."""
    try:
        pools = TypeAdapter(list[Pool]).validate_json(path.read_bytes())
    except OSError as error:
        raise invalid([Violation("ATELIER_POOLS_FILE", f"cannot read {path}: {error.strerror}")]) from error
    except ValidationError as error:
        found = [(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
        raise invalid([Violation(f"ATELIER_POOLS_FILE {place}", message) for place, message in found]) from error
    twice = sorted({pool.name for pool in pools if sum(other.name == pool.name for other in pools) > 1})
    if twice:
        raise invalid([Violation("ATELIER_POOLS_FILE", f"pools {', '.join(twice)} stand there twice")])
    return sorted(pools, key=lambda pool: pool.name)


def choose(name: str, there: Iterable[str]) -> tuple[str, str]:
    """The id behind `pools/{id}`, or behind nothing where there is one pool; and what is wrong, empty when nothing is."""
    names = sorted(there)
    listed = ", ".join(f"pools/{pool}" for pool in names) or "none"
    if not name:
        return (names[0], "") if len(names) == 1 else ("", f"must be set where there is not exactly one; there are: {listed}")
    pool = name.removeprefix("pools/")
    return (pool, "") if pool in names and name.startswith("pools/") else ("", f"there is no {name!r}; there are: {listed}")
