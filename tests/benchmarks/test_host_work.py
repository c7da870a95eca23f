"""The benchmark of a step's host work runs and measures every rank."""

from pathlib import Path

import pytest

from benchmarks.host_work import run, table


@pytest.mark.distributed
def test_every_rank_is_measured(tmp_path: Path) -> None:
    results = run(16, 64, data=2, tensor=1, folder=tmp_path)
    assert ["record_s" in found for found in results] == [True, False]
    assert all(found["deal_s"] > 0 and found["pack_s"] > 0 and found["memory_mb"] >= 0 for found in results)
    assert len(table(results).splitlines()) == 4
    assert list(tmp_path.iterdir()) == []
