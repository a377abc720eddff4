"""Mounts as text: ``-v``, ``--mount`` and ``--tmpfs`` (docker-run(1))."""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Sequence
from typing import Literal, cast

from vmm.model.errors import UsageError
from vmm.model.ids import NAME
from vmm.model.options import boolean, size
from vmm.model.spec import Mount

_VOLUME_HINT = "use /host/dir:/inside[:ro], name:/inside[:ro], or /inside"
_PROPAGATION = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_TMPFS_WORDS = {"ro", "rw", "noexec", "exec", "nosuid", "suid", "nodev", "dev", "noatime"}
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
}


def volume(text: str, cwd: str = "/") -> Mount:
    """A mount of ``-v``. A source that starts with ``.`` is a path relative to ``cwd``."""
    parts = text.split(":")
    if len(parts) > 3:
        raise UsageError(f"invalid volume specification: '{text:.200}'", _VOLUME_HINT)
    if not all(parts):
        raise UsageError(f"invalid spec: {text:.200}: empty section between colons", _VOLUME_HINT)
    if len(parts) == 1:
        return Mount(kind="volume", target=_target(parts[0], text), anonymous=True)
    source, target = parts[0], _target(parts[1], text)
    mode = _mode(parts[2]) if len(parts) == 3 else {}
    if source.startswith("."):
        source = os.path.join(cwd, source)
    if source.startswith("/"):
        if mode.pop("nocopy", None):
            raise UsageError(f"invalid mode: {parts[2]:.80}", "nocopy is for named volumes")
        return _mount("bind", target, source=posixpath.normpath(source), **mode)
    if not NAME.match(source):
        raise UsageError(
            f'create {source:.80}: "{source:.80}" includes invalid characters for a local volume'
            ' name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed',
            "If you intended to pass a host directory, use absolute path.",
        )
    if "propagation" in mode:
        raise UsageError(f"invalid mode: {parts[2]:.80}", "propagation is for host directories")
    return _mount("volume", target, source=source, **mode)


def _mode(text: str) -> dict[str, object]:
    """``ro``, ``rw``, ``nocopy`` or a propagation, by comma."""
    fields: dict[str, object] = {}
    for word in text.split(","):
        if word in {"ro", "rw"}:
            fields["read_only"] = word == "ro"
        elif word == "nocopy":
            fields["nocopy"] = True
        elif word in _PROPAGATION:
            fields["propagation"] = word
        elif word in {"z", "Z"}:
            raise UsageError(f"invalid mode: {text:.80}", "SELinux relabelling is not supported")
        else:
            raise UsageError(f"invalid mode: {text:.80}", "use ro, rw, nocopy or a propagation")
    return fields


def _target(text: str, whole: str) -> str:
    path = posixpath.normpath(text) if text else text
    if not text.startswith("/"):
        raise UsageError(
            f"invalid mount path: '{text:.80}' mount path must be absolute", _VOLUME_HINT
        )
    if path.lstrip("/") == "":
        raise UsageError(
            f"invalid specification: destination can't be '/': {whole:.80}", _VOLUME_HINT
        )
    return "/" + path.lstrip("/")


def _mount(kind: str, target: str, **fields: object) -> Mount:
    typed = cast(Literal["bind", "volume", "tmpfs"], kind)
    return Mount(kind=typed, target=target, **fields)  # type: ignore[arg-type]


def mount(text: str) -> Mount:
    """A mount of ``--mount type=bind,source=/a,target=/b,readonly``; the default type is volume."""
    fields = _fields(text)
    kind = fields.pop("type", "volume").lower()
    if kind not in {"bind", "volume", "tmpfs"}:
        raise UsageError(f"mount type {kind!r:.80} is not supported", "use bind, volume or tmpfs")
    if not fields.get("target"):
        raise UsageError("target is required", f"add target=/inside to --mount {text:.80}")
    target = _target(fields.pop("target"), text)
    source = fields.pop("source", "")
    read_only = boolean(fields.pop("readonly", "false") or "true")
    special = {"bind": _bind_fields, "volume": _volume_fields, "tmpfs": _tmpfs_fields}[kind]
    extra = special(source, fields, text)
    if fields:
        key = next(iter(fields))
        raise UsageError(f"unexpected key '{key:.80}' in '{text:.200}' for type {kind}")
    return _mount(kind, target, source=source, read_only=read_only, **extra)


def _fields(text: str) -> dict[str, str]:
    """The key=value fields, a line of CSV (RFC 4180), so that a value may hold a comma."""
    import csv

    try:
        rows: Sequence[list[str]] = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise UsageError(f"invalid --mount {text!r:.200}: {error}") from None
    fields: dict[str, str] = {}
    for item in rows[0] if rows else []:
        key, equals, value = item.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if not equals and key not in {"readonly", "volume-nocopy"}:
            raise UsageError(
                f"invalid field '{item:.80}' must be a key=value pair",
                "use type=bind,source=/host,target=/inside,readonly",
            )
        fields[key] = value
    return fields


def _bind_fields(source: str, fields: dict[str, str], text: str) -> dict[str, object]:
    if not source.startswith("/"):
        raise UsageError(
            f"invalid mount path: '{source:.80}' mount path must be absolute",
            "a bind mount needs source=/absolute/path",
        )
    propagation = fields.pop("bind-propagation", "rprivate")
    if propagation not in _PROPAGATION:
        raise UsageError(f"invalid propagation: {propagation:.80}")
    return {"propagation": propagation}


def _volume_fields(source: str, fields: dict[str, str], text: str) -> dict[str, object]:
    if source and not NAME.match(source):
        raise UsageError(
            f"invalid volume name {source!r:.80}",
            "a host directory needs type=bind; names are [a-zA-Z0-9][a-zA-Z0-9_.-]*",
        )
    nocopy = boolean(fields.pop("volume-nocopy", "false") or "true")
    return {"nocopy": nocopy, "anonymous": not source}


def _tmpfs_fields(source: str, fields: dict[str, str], text: str) -> dict[str, object]:
    if source:
        raise UsageError("cannot use 'source' with a tmpfs mount", "drop source=")
    result: dict[str, object] = {}
    if "tmpfs-size" in fields:
        result["size"] = size(fields.pop("tmpfs-size"))
    if "tmpfs-mode" in fields:
        result["mode"] = _file_mode(fields.pop("tmpfs-mode"))
    return result


def _file_mode(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,5}", text) or int(text, 8) > 0o7777:
        raise UsageError(f"invalid mode {text!r:.80}", "use an octal mode: 1777")
    return int(text, 8)


def tmpfs(text: str) -> Mount:
    """``--tmpfs /inside[:size=64m,mode=1777,noexec]``."""
    path, _, words = text.partition(":")
    fields: dict[str, object] = {}
    options = []
    for word in words.split(",") if words else []:
        key, equals, value = word.partition("=")
        if key == "size" and equals:
            fields["size"] = size(value)
        elif key == "mode" and equals:
            fields["mode"] = _file_mode(value)
        elif word in {"ro", "rw"}:
            fields["read_only"] = word == "ro"
        elif word in _TMPFS_WORDS or (key in {"uid", "gid", "nr_inodes"} and value.isdigit()):
            options.append(word)
        else:
            raise UsageError(
                f'invalid tmpfs option ["{word:.80}"]', "use --tmpfs /run:size=64m,mode=755,noexec"
            )
    return _mount("tmpfs", _target(path, text), options=tuple(options), **fields)
