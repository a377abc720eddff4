"""The root file system of the busybox image, laid out as the published one is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from typing import IO

_DIRECTORIES = (
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("root", 0o700),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/spool", 0o755),
    ("var/spool/mail", 0o755),
    ("var/www", 0o755),
)
_USERS = (
    ("root", 0, 0, "/root", "/bin/sh"),
    ("daemon", 1, 1, "/usr/sbin", "/bin/false"),
    ("bin", 2, 2, "/bin", "/bin/false"),
    ("sys", 3, 3, "/dev", "/bin/false"),
    ("sync", 4, 100, "/bin", "/bin/sync"),
    ("mail", 8, 8, "/var/spool/mail", "/bin/false"),
    ("www-data", 33, 33, "/var/www", "/bin/false"),
    ("operator", 37, 37, "/var", "/bin/false"),
    ("nobody", 65534, 65534, "/home", "/bin/false"),
)
_GROUPS = (
    ("root", 0),
    ("daemon", 1),
    ("bin", 2),
    ("sys", 3),
    ("adm", 4),
    ("tty", 5),
    ("disk", 6),
    ("mail", 8),
    ("www-data", 33),
    ("utmp", 43),
    ("staff", 50),
    ("users", 100),
    ("nogroup", 65534),
)


def busybox_tar(out: IO[bytes], program: bytes, applets: Iterable[str]) -> None:
    """Write the root as a tar: the program, a hard link for each applet, and a few files."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode in _DIRECTORIES:
            _add(tar, name, tarfile.DIRTYPE, mode)
        _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, data=program)
        for applet in sorted(set(applets) - {"busybox"}):
            _add(tar, f"bin/{applet}", tarfile.LNKTYPE, 0o755, link="bin/busybox")
        _add(tar, "usr/bin/env", tarfile.SYMTYPE, 0o777, link="../../bin/env")
        for name, mode, text in _files():
            _add(tar, f"etc/{name}", tarfile.REGTYPE, mode, data=text.encode())


def _files() -> Iterable[tuple[str, int, str]]:
    passwd = "".join(f"{n}:x:{u}:{g}:{n}:{home}:{shell}\n" for n, u, g, home, shell in _USERS)
    yield "passwd", 0o644, passwd
    yield "group", 0o644, "".join(f"{name}:x:{gid}:\n" for name, gid in _GROUPS)
    yield "shadow", 0o600, "".join(f"{user[0]}:*:10933:0:99999:7:::\n" for user in _USERS)
    yield "nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n"


def _add(
    tar: tarfile.TarFile, name: str, kind: bytes, mode: int, *, data: bytes = b"", link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname, member.size = kind, mode, link, len(data)
    tar.addfile(member, io.BytesIO(data))
