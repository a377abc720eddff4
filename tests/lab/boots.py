"""What machines of the lab have in common: scripts go in by a shared directory, results out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Result(NamedTuple):
    """What a script of the guest came to; ``seconds`` by the guest's clock."""

    code: int
    out: str
    err: str
    seconds: float


class Boot(NamedTuple):
    """Results by script, and all that the guest's console showed."""

    results: dict[str, Result]
    console: str


def shared(directory: Path, scripts: dict[str, str]) -> Path:
    """The directory that the guest sees, with the scripts for ``run_scripts.py``."""
    made = directory / "shared"
    made.mkdir(exist_ok=True)
    (made / "scripts.json").write_text(json.dumps(scripts))
    return made


def collect(shared: Path, console: str) -> Boot:
    """What ``run_scripts.py`` wrote there; AssertionError when that is nothing."""
    results = shared / "results.json"
    assert results.exists(), f"the guest reported nothing:\n{console}"
    found = json.loads(results.read_text())
    return Boot({name: Result(*values) for name, values in found.items()}, console)


def text(console: bytes) -> str:
    return console.decode(errors="replace").replace("\r", "")
