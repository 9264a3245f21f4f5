"""How much memory is free for a replica."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes(device: str, *, cgroup: Path = CGROUP) -> int:
    """Free bytes on the device; for a CPU what the machine has available, less where the container's limit is nearer (cgroup v2)."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - int(used))


def affordable(batch_sizes: tuple[int, ...], *, each_bytes: int, free_bytes: int) -> tuple[int, ...]:
    """The batch sizes, smallest first, of which a copy of `each_bytes` each takes at most a third of what is free."""
    return batch_sizes[: free_bytes // 3 // max(each_bytes, 1)]
