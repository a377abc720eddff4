"""The C unit tests under sanitizers, and how the programs are built."""

from __future__ import annotations

import subprocess
from pathlib import Path

NATIVE = Path(__file__).parents[3] / "native"


def test_record_decoder_under_sanitizers(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-s", "-C", str(NATIVE), f"BUILD={tmp_path}", "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "records: ok\n"), done.stderr


def test_programs_need_no_library(libexec: Path) -> None:
    for name in ("vmm-launch", "vmm-init"):
        head = (libexec / name).read_bytes()
        assert b"/lib64/ld-linux" not in head
