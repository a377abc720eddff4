"""Settings: the documented file, variables, flags, and what is wrong with them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from vmm.model.errors import InvalidDocument, UsageError
from vmm.ports.yaml import load_yaml
from vmm.settings import Settings, load

REPO = Path(__file__).parents[2]


def test_the_documented_file_has_every_setting_with_its_default() -> None:
    document, _ = load_yaml(str(REPO / "configs/config.yaml"))
    defaults = asdict(Settings())
    del defaults["sources"]
    shown = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
    assert shown == defaults


def test_variable_wins_over_file_and_flag_over_both(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("root: /a\nmtu: 1400\nstop_timeout: 3\n")
    settings = load("/c", {"VMM_CONFIG": str(config), "VMM_ROOT": "/b", "VMM_MTU": "9000"})
    assert (settings.root, settings.mtu, settings.stop_timeout) == ("/c", 9000, 3)
    assert settings.sources["stop_timeout"] == f"{config}:3"
    assert load(None, {"VMM_CONFIG": str(config), "VMM_ROOT": "/b"}).root == "/b"


def test_lists_from_variables() -> None:
    assert load(None, {"VMM_PUBLISH_ADDRESSES": "0.0.0.0, ::"}).publish_addresses == (
        "0.0.0.0",
        "::",
    )


def test_all_faults_are_reported_with_their_lines(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("mtu: large\nno_such: 1\nstop_timeout: yes\npublish_addresses: [1]\n")
    with pytest.raises(InvalidDocument) as caught:
        load(None, {"VMM_CONFIG": str(config)})
    assert caught.value.faults == [
        "line 1: mtu: must be a whole number",
        "line 2: no_such: no such setting",
        "line 3: stop_timeout: must be a whole number",
        "line 4: publish_addresses: must be a list of texts",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mtu: 1\nmtu: 2\n", "key 'mtu' given twice (first on line 1)"),
        ("- a\n", "must be a mapping of settings"),
        ("mtu: [1\n", "line 2"),
    ],
)
def test_documents_that_are_no_settings(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(InvalidDocument, match=says.replace("(", r"\(").replace(")", r"\)")):
        load(None, {"VMM_CONFIG": str(config)})


def test_a_named_file_must_exist_and_numbers_be_numbers() -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load(None, {"VMM_CONFIG": "/nonexistent"})
    with pytest.raises(UsageError, match="VMM_MTU: 'x' is not a whole number"):
        load(None, {"VMM_MTU": "x"})


def test_instances_are_named_after_the_root(tmp_path: Path) -> None:
    assert Settings().instance == "default" and Settings().bridge == "vmm0"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    first, second = Settings(root=str(tmp_path / "real")), Settings(root=str(link))
    assert first.instance == second.instance != "default"
    assert len(first.instance) == 8 and first.bridge == f"vmm-{first.instance}"


@pytest.mark.parametrize("item", ["log_driver", "storage_driver"])
def test_a_word_that_no_part_honours_is_refused(item: str) -> None:
    with pytest.raises(UsageError, match=f"VMM_{item.upper()}: {item}: 'other' is not supported"):
        load(None, {f"VMM_{item.upper()}": "other"})
