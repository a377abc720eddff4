"""Statistics, freezing and limits on cgroup2, in a kernel that has nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab import uml

REPO = Path(__file__).parents[3]


def test_a_launcher_on_cgroup2(tmp_path: Path, libexec: Path) -> None:
    script = f'cd {REPO} && "$PYTHON" -m tests.unit.native.watch_v2 "$SCRATCH/watch" "{libexec}" '
    result = uml.run({"watch": script}, tmp_path, timeout=55).results["watch"]
    assert result.code == 0, result
    found = json.loads(result.out)
    stats = found["stats"]
    assert 9_000_000 < stats["memory"] < 60_000_000
    assert stats["cpu_ns"] > 10_000_000
    assert (stats["pids"], stats["pids_limit"], stats["cpus"]) == (4, 50, 1)
    assert {"blk_read", "blk_write", "system_ns"} <= set(stats)
    assert (found["frozen"], found["moves frozen"], found["moves thawed"]) == (True, False, True)
    assert "sleep 999" in found["top"] and len(found["top"]) == 4
    assert found["below"]
    assert found["pids_limit"] == 77
    assert (found["code"], found["left"]) == (137, False), "killed frozen; nothing stays"
