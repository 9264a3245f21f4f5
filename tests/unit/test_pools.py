"""Pools as the chart writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.errors import AtelierError
from atelier.pools import Pool, choose, read_pools


def test_pools_are_read_with_the_keys_of_the_chart(tmp_path: Path) -> None:
    file = tmp_path / "pools.json"
    file.write_text('[{"name": "fast", "gpu": "NVIDIA-A10", "minReplicas": 0, "maxReplicas": 3, "gpusPerReplica": 2}, {"name": "cpu"}]')
    assert read_pools(file) == [Pool(name="cpu"), Pool(name="fast", gpu="NVIDIA-A10", min_replicas=0, max_replicas=3, gpus_per_replica=2)]
    assert [(pool.label, pool.gpus) for pool in read_pools(file)] == [("cpu", 0), ("NVIDIA-A10", 2)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[{"name": "Fast"}]', "pattern"),
        ('[{"name": "a", "minReplicas": 2}]', "minReplicas must not be above maxReplicas"),
        ('[{"name": "a", "gpuz": "x"}]', "gpuz"),
        ('[{"name": "a"}, {"name": "a"}]', "pools a stand there twice"),
        ("{", "JSON"),
    ],
)
def test_a_wrong_pool_is_refused_by_name(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "pools.json").write_text(content)
    with pytest.raises(AtelierError, match=f"ATELIER_POOLS_FILE.*{sentence}"):
        read_pools(tmp_path / "pools.json")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r"cannot read .*pools\.json"):
        read_pools(tmp_path / "pools.json")


def test_the_only_pool_need_not_be_named() -> None:
    assert choose("", ["cpu"]) == ("cpu", "")
    assert choose("pools/fast", ["cpu", "fast"]) == ("fast", "")
    assert "there are: pools/cpu, pools/fast" in choose("", ["fast", "cpu"])[1]
    assert "there is no 'slow'" in choose("slow", ["cpu"])[1]
