"""Names of processor architectures: uname(2)'s into those of the OCI image-spec (GOARCH)."""

from __future__ import annotations

#: The oldest Linux (major, minor) that guests boot: plans use what it has, root images the chunks
#: of sparse files (EROFS, 5.15).
OLDEST_GUEST = (6, 1)

_FROM_UNAME = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64",
    "ppc64le": "ppc64le", "s390x": "s390x",
}  # fmt: skip


def architecture(machine: str) -> str:
    """``x86_64`` is ``amd64``; a name that is not known (or is one already) stays as it is."""
    return _FROM_UNAME.get(machine, machine)
