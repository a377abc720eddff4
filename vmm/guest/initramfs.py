"""A guest's first root: vmm-init as ``/init``, and the modules it loads.

``/modules/order`` lists the files of ``/modules`` in the order in which they are to be loaded.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from vmm.guest.cpio import Cpio
from vmm.guest.modules import Modules


def initramfs(init: bytes, modules: Modules | None, order: Sequence[str]) -> bytes:
    """The archive; uncompressed, as unpacking costs an emulated guest more than reading."""
    out = io.BytesIO()
    archive = Cpio(out)
    archive.directory("dev")
    archive.device("dev/console", 0o600, 5, 1)
    archive.file("init", init, 0o755)
    archive.directory("modules")
    archive.file("modules/order", "".join(f"{name}.ko\n" for name in order).encode())
    for name in order:
        assert modules is not None
        archive.file(f"modules/{name}.ko", modules.content(name))
    archive.close()
    return out.getvalue()
