"""Removing images: references first, then what no other image needs."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vmm.image import reference as refs
from vmm.image.index import Entries
from vmm.model.errors import Conflict, CorruptStore
from vmm.model.ids import short
from vmm.model.image import Image

if TYPE_CHECKING:
    from vmm.image.store import ImageStore, Pruned


def remove(
    store: ImageStore,
    entries: Entries,
    image: Image,
    by: str,
    force: bool,
    in_use: Mapping[str, Sequence[str]],
    running: Collection[str],
    keep: Collection[str],
) -> list[str]:
    """See ImageStore.remove; ``by`` is the reference the image was named by, if any."""
    image = store.catalogue.image(store.catalogue.by_id(entries)[image.id], entries)
    if by and len(image.references) > 1:
        return _untag(store, entries, [by])
    if not by and not force:
        _one_repository(image)
    users = in_use.get(image.id, ())
    if users:
        _forced_or_free(store, image, by, users, running, force)
        return _untag(store, entries, image.references)
    lines = _untag(store, entries, image.references)
    removed, _ = _delete(store, entries, image, keep)
    return [*lines, *removed]


def remove_broken(store: ImageStore, entries: Entries, name: str) -> list[str]:
    """Take away a reference whose image cannot be read; prune() frees what it held."""
    reference = store.normalise(name)
    digest = entries.references().get(reference)
    if digest is None:
        raise CorruptStore(
            f"{name}: the store has an image that cannot be read",
            "vmm system check names it; remove it by its reference",
        )
    lines = _untag(store, entries, [reference])
    if digest not in entries.references().values():
        entries.drop(digest)
    return lines


def prune(
    store: ImageStore,
    entries: Entries,
    in_use: Collection[str],
    keep: Collection[str],
    everything: bool,
    min_age: float,
) -> Pruned:
    """See ImageStore.prune."""
    from vmm.image.store import Pruned

    lines: list[str] = []
    freed = 0
    for image in list(store.catalogue.images(entries)):
        if image.id in in_use or (image.references and not everything):
            continue
        lines += _untag(store, entries, image.references)
        removed, size = _delete(store, entries, image, keep)
        lines += removed
        freed += size
    freed += _sweep(store, entries, keep, min_age)
    store.driver.prune_temporary()
    store.blobs.prune_temporary()
    return Pruned(lines, freed)


def _untag(store: ImageStore, entries: Entries, references: Iterable[str]) -> list[str]:
    lines = []
    for reference in references:
        entries.untag(reference)
        lines.append(f"Untagged: {store.familiar(reference)}")
    return lines


def _one_repository(image: Image) -> None:
    if len({refs.parse(reference).name for reference in image.references}) > 1:
        raise Conflict(
            f"conflict: unable to delete {short(image.id)} (must be forced) - "
            "image is referenced in multiple repositories",
            "remove it by each of its references, or with --force",
        )


def _forced_or_free(
    store: ImageStore,
    image: Image,
    by: str,
    users: Sequence[str],
    running: Collection[str],
    force: bool,
) -> None:
    active = [user for user in users if user in running]
    if (active and not by) or not image.references:
        kind = "running" if active else "stopped"
        raise Conflict(
            f"conflict: unable to delete {short(image.id)} (cannot be forced) - "
            f"image is being used by {kind} container {(active or users)[0]}",
            "remove its workloads first (vmm rm)",
        )
    if force:
        return
    if by:
        what = f'remove repository reference "{store.familiar(by)}"'
        why = f"container {users[0]} is using its referenced image {short(image.id)}"
    else:
        what = f"delete {short(image.id)}"
        why = f"image is being used by stopped container {users[0]}"
    raise Conflict(
        f"conflict: unable to {what} (must be forced) - {why}",
        "remove its workloads first (vmm rm), or only its name with --force",
    )


def _delete(
    store: ImageStore, entries: Entries, image: Image, keep: Collection[str]
) -> tuple[list[str], int]:
    """Remove an image without references: the index first, so that a crash leaves only what
    prune() removes."""
    blobs = {image.id}
    for digest in store.catalogue.by_id(entries)[image.id]:
        layers = store.catalogue.load(digest)[0].layers
        blobs |= {digest, *(layer.digest for layer in layers)}
        entries.drop(digest)
    store.index.write(entries)
    lines, freed = [f"Deleted: {image.id}"], 0
    try:
        needed_layers = _needed_layers(store, entries, keep)
    except CorruptStore:  # what an unreadable image needs is unknown: prune() comes later
        return lines, 0
    for chain in reversed(image.chain_ids):
        if chain not in needed_layers and store.driver.has(chain):
            blob = store.driver.layer(chain).blob
            blobs |= {blob.digest} if blob else set()
            freed += store.driver.remove(chain)
            lines.append(f"Deleted: {chain}")
    freed += _remove_orphans(store, needed_layers)
    needed_blobs = _needed_blobs(store, entries)
    freed += sum(store.blobs.remove(digest) for digest in blobs - needed_blobs)
    return lines, freed


def _remove_orphans(store: ImageStore, needed: Collection[str]) -> int:
    """Remove layers (of a build's cache) whose parent is gone: nothing can use them any more."""
    freed = 0
    while orphans := set(store.driver.orphans()).difference(needed):
        freed += sum(store.driver.remove(chain) for chain in orphans)
    return freed


def _needed_layers(store: ImageStore, entries: Entries, keep: Collection[str]) -> set[str]:
    """Chain IDs of every image left, and of ``keep`` with all below them."""
    needed: set[str] = set()
    for digest in entries.digests():
        needed.update(store.catalogue.chain_ids(store.catalogue.load(digest)[1]))
    for chain in keep:
        try:
            needed.update(store.driver.ancestry(chain))
        except CorruptStore:
            needed.add(chain)
    return needed


def _needed_blobs(store: ImageStore, entries: Entries) -> set[str]:
    needed = {layer.blob.digest for layer in store.driver.layers() if layer.blob}
    for digest in entries.digests():
        manifest = store.catalogue.load(digest)[0]
        needed |= {digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    return needed


def _sweep(store: ImageStore, entries: Entries, keep: Collection[str], min_age: float) -> int:
    """Remove layers and blobs that nothing needs, unless a command may be about to use them."""
    freed = 0
    try:
        needed_layers = _needed_layers(store, entries, keep)
    except CorruptStore:
        return 0
    unneeded = [
        layer.chain_id for layer in store.driver.layers() if layer.chain_id not in needed_layers
    ]
    for chain in unneeded:
        if store.driver.age(chain) >= min_age:
            freed += store.driver.remove(chain)
    freed += _remove_orphans(store, needed_layers)
    oldest = time.time() - min_age
    needed_blobs = _needed_blobs(store, entries)
    for digest in store.blobs.digests():
        if digest not in needed_blobs and os.stat(store.blobs.path(digest)).st_mtime <= oldest:
            freed += store.blobs.remove(digest)
    return freed
