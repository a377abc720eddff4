"""Images, volumes and networks as Docker shows them: pure functions to plain dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vmm.engine.views import WorkloadView, health_view
from vmm.model import human
from vmm.model.errors import UsageError
from vmm.model.ids import short
from vmm.model.image import ContainerConfig, History, Image
from vmm.model.network import NetworkRecord
from vmm.storage.volumes import Volume

View = dict[str, Any]
NONE = "<none>"
#: The familiar form of a normalised reference.
Familiar = Callable[[str], str]
FILTERS = frozenset({"dangling", "label", "reference", "before", "since"})


def split_tag(reference: str) -> tuple[str, str]:
    """Repository and tag of a familiar reference."""
    name = reference.partition("@")[0]
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, NONE
    return repository, tag


def digests(image: Image, familiar: Familiar) -> list[str]:
    """``RepoDigests``: each repository with the manifest's digest."""
    names = {split_tag(familiar(reference))[0] for reference in image.references}
    return [f"{name}@{image.manifest_digest}" for name in sorted(names)]


def rows(image: Image, familiar: Familiar, now: int, *, truncate: bool) -> list[View]:
    """The fields of ``vmm images --format``, one row per reference."""
    created = human.parse_rfc3339(image.config.created)
    common = {
        "ID": short(image.id) if truncate else image.id,
        "Digest": image.manifest_digest,
        "CreatedAt": human.local(created) if created else "N/A",
        "CreatedSince": human.ago(created, now),
        "Size": human.size(image.size),
        "Platform": f"{image.config.os}/{image.config.architecture}",
    }
    names = [split_tag(familiar(r)) for r in sorted(image.references)] or [(NONE, NONE)]
    return [{"Repository": name, "Tag": tag, **common} for name, tag in names]


def matches(
    image: Image, filters: Mapping[str, Sequence[str]], familiar: Familiar, images: Sequence[Image]
) -> bool:
    """Whether an image passes every ``--filter``."""
    return all(
        _matches_one(image, key, value, familiar, images)
        for key, values in filters.items()
        for value in values
    )


def _matches_one(
    image: Image, key: str, value: str, familiar: Familiar, images: Sequence[Image]
) -> bool:
    if key == "dangling":
        if value not in {"true", "false", "1", "0"}:
            raise UsageError(f"invalid filter 'dangling={value:.80}'", "use true or false")
        return (not image.references) == (value in {"true", "1"})
    if key == "label":
        name, equals, wanted = value.partition("=")
        labels = image.config.config.labels
        return name in labels and (not equals or labels[name] == wanted)
    if key == "reference":
        return any(_glob(familiar(reference), value) for reference in image.references)
    other = _created_of(value, familiar, images)
    created = human.parse_rfc3339(image.config.created)
    return created < other if key == "before" else created > other


def row_matches(row: View, patterns: Sequence[str]) -> bool:
    """Whether a row's reference is one that ``--filter reference`` names."""
    reference = f"{row['Repository']}:{row['Tag']}"
    return all(_glob(reference, pattern) for pattern in patterns)


def _glob(reference: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    name, tag = split_tag(reference)
    return fnmatchcase(name if ":" not in pattern else f"{name}:{tag}", pattern)


def _created_of(name: str, familiar: Familiar, images: Sequence[Image]) -> int:
    for image in images:
        known = {familiar(reference) for reference in image.references}
        if known & {name, f"{name}:latest"} or short(image.id) == name:
            return human.parse_rfc3339(image.config.created)
    raise UsageError(f"No such image: {name:.80}", "vmm images lists the local ones")


def inspect(image: Image, familiar: Familiar) -> View:
    """The image as ``docker image inspect`` shows it."""
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": [familiar(reference) for reference in sorted(image.references)],
        "RepoDigests": digests(image, familiar),
        "Parent": "",
        "Comment": config.history[-1].comment if config.history else "",
        "Created": config.created,
        "Author": config.author,
        "Config": config_view(config.config),
        "Architecture": config.architecture,
        **({"Variant": config.variant} if config.variant else {}),
        "Os": config.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay", "Data": {"ChainIDs": list(image.chain_ids)}},
        "RootFS": {"Type": config.rootfs.type, "Layers": list(config.rootfs.diff_ids)},
        "Metadata": {},
    }


def config_view(config: ContainerConfig) -> View:
    """``Config`` of an image."""
    return {
        "User": config.user,
        "ExposedPorts": config.exposed_ports or None,
        "Env": list(config.env),
        "Cmd": config.cmd,
        "Volumes": config.volumes or None,
        "WorkingDir": config.working_dir,
        "Entrypoint": config.entrypoint,
        "OnBuild": config.on_build,
        "Labels": config.labels or None,
        "StopSignal": config.stop_signal,
        "Shell": config.shell,
        **({"Healthcheck": health_view(config.healthcheck)} if config.healthcheck else {}),
    }


def history(
    image: Image, sizes: Sequence[int], now: int, *, truncate: bool, human_units: bool = True
) -> list[View]:
    """The fields of ``vmm history``, newest first. ``sizes`` are of the layers, base first."""
    shown: list[View] = []
    left = iter(sizes)
    for step in image.config.history or [History(comment="imported")] * bool(sizes):
        used = 0 if step.empty_layer else next(left, 0)
        shown.append(_step(step, used, now, truncate, human_units))
    shown.reverse()
    if shown:
        shown[0]["ID"] = short(image.id) if truncate else image.id
    return shown


def _step(step: History, used: int, now: int, truncate: bool, human_units: bool) -> View:
    created = human.parse_rfc3339(step.created)
    command = step.created_by.replace("\t", " ")
    if truncate and len(command) > 45:
        command = command[:44] + "…"
    return {
        "ID": "<missing>",
        "CreatedAt": step.created,
        "CreatedSince": human.ago(created, now),
        "CreatedBy": command,
        "Size": human.size(used) if human_units else str(used),
        "Comment": step.comment,
    }


def volume_inspect(volume: Volume, path: str) -> View:
    """The volume as ``docker volume inspect`` shows it."""
    return {
        "CreatedAt": human.rfc3339(volume.created),
        "Driver": volume.driver,
        "Labels": dict(volume.labels) or None,
        "Mountpoint": path,
        "Name": volume.name,
        "Options": None,
        "Scope": "local",
        "Anonymous": volume.anonymous,
    }


def volume_row(volume: Volume, path: str) -> View:
    """The fields of ``vmm volume ls --format``."""
    return {
        "Driver": volume.driver,
        "Name": volume.name,
        "Mountpoint": path,
        "Labels": ",".join(f"{k}={v}" for k, v in sorted(volume.labels.items())),
        "Scope": "local",
    }


def network_inspect(network: NetworkRecord, running: Iterable[WorkloadView]) -> View:
    """The network as ``docker network inspect`` shows it, with those that are in it."""
    pools = [{"Subnet": subnet, "Gateway": network.gateway} for subnet in network.subnets]
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": human.rfc3339(network.created),
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": pools},
        "Internal": False,
        "Containers": {
            view.spec.id: _attached(view)
            for view in running
            if view.spec.network.mode == network.name
        },
        "Options": {**network.options, **({"bridge": network.bridge} if network.bridge else {})},
        "Labels": dict(network.labels),
    }


def _attached(view: WorkloadView) -> View:
    endpoint = view.endpoint
    return {
        "Name": view.spec.name,
        "EndpointID": endpoint.link if endpoint else "",
        "MacAddress": endpoint.mac if endpoint else "",
        "IPv4Address": f"{endpoint.address}/{endpoint.prefix}" if endpoint else "",
        "IPv6Address": "",
    }


def network_row(network: NetworkRecord, *, truncate: bool) -> View:
    """The fields of ``vmm network ls --format``."""
    return {
        "ID": short(network.id) if truncate else network.id,
        "Name": network.name,
        "Driver": network.driver,
        "Scope": "local",
    }
