"""Base images from the host's packages, and what is read of apt's configuration."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmm.image.aptconfig import apt_settings, debian_sources
from vmm.image.bootstrap import bootstrap, is_static
from vmm.image.store import ImageStore
from vmm.model.errors import HostError, UsageError
from vmm.ports.runner import HostRunner
from vmm.storage.overlay import OverlayDriver


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path, OverlayDriver(tmp_path / "layers"))


def test_busybox(store: ImageStore) -> None:
    image = bootstrap("busybox", HostRunner(), store)
    assert image.references == ("docker.io/library/busybox:latest",)
    assert image.config.config.cmd == ["sh"]
    root = store.layout.parent / "layers" / image.chain_ids[0][7:31]
    assert is_static(root / "bin/busybox")
    done = subprocess.run(
        ["chroot", root, "/bin/sh", "-c", "id -un; env | wc -l; /usr/bin/env echo ok"],
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"root", *done.stdout.split()[1:2], b"ok"]
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    applets = subprocess.run([root / "bin/busybox", "--list"], capture_output=True, check=True)
    for applet in applets.stdout.decode().split():
        assert (root / "bin" / applet).stat().st_ino == (root / "bin/busybox").stat().st_ino


def test_another_reference(store: ImageStore) -> None:
    image = bootstrap("busybox", HostRunner(), store, reference="tools/box:1")
    assert image.references == ("docker.io/tools/box:1",)


@pytest.mark.parametrize("name", ["alpine", "debian", "debian:../x", "hub.example/busybox", "x/y"])
def test_unknown_bases(store: ImageStore, name: str) -> None:
    with pytest.raises(UsageError):
        bootstrap(name, HostRunner(), store)


def test_a_missing_mmdebstrap_is_named(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="mmdebstrap") as caught:
        bootstrap("debian:bookworm", HostRunner(), store)
    assert "apt-get install mmdebstrap" in caught.value.hint


def test_static_programs_are_told_from_others(tmp_path: Path) -> None:
    shell = shutil.which("bash")
    assert shell is not None and not is_static(Path(os.path.realpath(shell)))
    (tmp_path / "short").write_bytes(b"\x7fELF\x02\x01")
    assert not is_static(tmp_path / "short") and not is_static(tmp_path / "missing")


def etc(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


DEB822 = """# main
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/x.gpg

Types: deb
URIs: http://pg.example/
Suites: bookworm-pgdg
Components: main

Enabled: no
Types: deb
URIs: http://off.example/
Suites: bookworm
Components: main
"""


def test_sources_of_both_formats(tmp_path: Path) -> None:
    host = etc(
        tmp_path,
        {
            "os-release": "VERSION_CODENAME=bookworm\n",
            "apt/sources.list": (
                "# deb http://no.example bookworm main\n"
                "deb [arch=amd64 signed-by=/k.gpg] http://sec.example/ bookworm-security main\n"
                "deb-src http://src.example bookworm main\n"
            ),
            "apt/sources.list.d/debian.sources": DEB822,
            "apt/sources.list.d/node.list.disabled": "deb http://no.example bookworm main\n",
            "apt/sources.list.d/google.list": "deb http://no.example stable main\n",
        },
    )
    text = debian_sources("bookworm", host)
    assert text.count("Types: deb\n") == 2
    assert "http://mirror.example/debian" in text and "http://sec.example/" in text
    assert "Signed-By: /k.gpg" in text and "Architectures: amd64" in text
    assert "no.example" not in text and "pg.example" not in text and "off.example" not in text
    assert "Suites: bookworm bookworm-updates\n" in text


def test_sources_for_another_suite(tmp_path: Path) -> None:
    host = etc(
        tmp_path,
        {
            "os-release": 'VERSION_CODENAME="trixie"\n',
            "apt/sources.list": "deb http://mirror.example/debian trixie-updates main\n",
        },
    )
    assert "Suites: bookworm-updates\n" in debian_sources("bookworm", host)


def test_no_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no source of Debian bookworm"):
        debian_sources("bookworm", tmp_path)


class Dump:
    """A Runner that answers as apt-config would."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> bytes:
        assert list(argv) == ["apt-config", "dump"]
        return (
            b'Acquire::http::Proxy "http://proxy.example:3128";\n'
            b'Acquire::http::Proxy::direct.example "DIRECT";\n'
            b'DPkg::Post-Invoke:: "rm -rf /";\nAcquire::Check-Date "false";\nAPT "";\n'
        )


def test_proxies_are_kept_and_nothing_else() -> None:
    found = apt_settings(Dump(), {"http_proxy": "http://no", "https_proxy": "http://p:1"})
    assert found == [
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::http::Proxy::direct.example "DIRECT";',
        'Acquire::Check-Date "false";',
        'Acquire::https::Proxy "http://p:1";',
    ]
