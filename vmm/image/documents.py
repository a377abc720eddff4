"""Decoding image documents, which other tools write with ``null`` where they mean nothing."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from vmm.model.errors import CorruptStore
from vmm.model.image import Index, Manifest

T = TypeVar("T")
_MAX_DEPTH = 64


def encode(document: Manifest | Index) -> bytes:
    """The document with the fields that the specification requires, defaults too."""
    fields = msgspec.to_builtins(document)
    required: dict[str, Any] = {
        "schemaVersion": document.schema_version,
        "mediaType": document.media_type,
    }
    required |= {"manifests": []} if isinstance(document, Index) else {"config": {}, "layers": []}
    return msgspec.json.encode(required | fields)


def decode(data: bytes, kind: type[T], what: str) -> T:
    """Decode a JSON document; CorruptStore names it and the place that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, RecursionError) as error:
        raise CorruptStore(f"{what}: {error}") from None
    try:
        return msgspec.convert(_without_nulls(msgspec.json.decode(data), 0), kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CorruptStore(f"{what}: {error}") from None


def _without_nulls(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise RecursionError("nested too deeply")
    if isinstance(value, dict):
        return {k: _without_nulls(v, depth + 1) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v, depth + 1) for v in value]
    return value
