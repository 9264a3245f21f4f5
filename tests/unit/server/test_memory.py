from __future__ import annotations

from pathlib import Path

from atelier.server.memory import affordable, free_memory_bytes


def test_as_many_copies_as_fit_into_a_third_of_what_is_free_smallest_first() -> None:
    assert affordable((2, 4, 8), each_bytes=100, free_bytes=650) == (2, 4)
    assert affordable((2, 4, 8), each_bytes=100, free_bytes=299) == ()
    assert affordable((2, 4, 8), each_bytes=1, free_bytes=1 << 30) == (2, 4, 8)


def test_a_containers_limit_counts_where_it_is_nearer(tmp_path: Path) -> None:
    machine = free_memory_bytes("cpu", cgroup=tmp_path / "none")
    assert machine > 1 << 20
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory_bytes("cpu", cgroup=tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes("cpu", cgroup=tmp_path) > 1 << 20
