"""A lower ring never imports a higher one, and services do not import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

#: What each part may import of vmm, by the package below ``vmm``. ``""`` is ``vmm`` itself.
ALLOWED = {
    "model": {"model"},
    "ports": {"model", "ports", "_native"},
    "state": {"model", "ports", "state"},
    "storage": {"model", "ports", "storage"},
    "image": {"model", "ports", "image", "storage"},
    "network": {"model", "ports", "network"},
    "guest": {"model", "ports", "guest", "storage"},
    "control": {"model", "ports", "control"},
    "dockerfile": {"model", "dockerfile"},
    "settings": {"model", "ports"},
    "backends": {"", "model", "ports", "backends"},
    "engine": {
        "", "model", "ports", "state", "storage", "image", "network", "guest", "control",
        "dockerfile", "settings", "backends", "engine",
    },
    "cli": {"", "model", "ports", "control", "settings", "engine", "cli"},
}  # fmt: skip


def _sources() -> list[Path]:
    return sorted((REPO / "vmm").glob("*/**/*.py"))


def _part(path: Path) -> str:
    return path.relative_to(REPO / "vmm").parts[0]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "vmm":
            found |= {f"vmm.{alias.name}" for alias in node.names if alias.name.islower()}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "vmm"}


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(REPO)))
def test_imports_only_what_its_ring_may(path: Path) -> None:
    allowed = ALLOWED[_part(path)]
    used = {([*name.split("."), ""])[1] for name in _imports(path)}
    used = {name for name in used if not name.startswith("__")}
    assert used <= allowed, f"{path} imports {sorted(used - allowed)}"


def test_every_part_is_listed() -> None:
    parts = {p.name for p in (REPO / "vmm").iterdir() if (p / "__init__.py").exists()}
    assert parts <= set(ALLOWED)
