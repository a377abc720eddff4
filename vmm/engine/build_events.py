"""What a build tells while it runs, as values; ``render`` gives Docker's classic text."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Event(msgspec.Struct, frozen=True):
    """Base of all."""


class StepStarted(Event, frozen=True):
    number: int
    total: int
    text: str


class CacheUsed(Event, frozen=True):
    pass


class ContainerStarted(Event, frozen=True):
    id: str


class ContainerRemoved(Event, frozen=True):
    id: str


class Output(Event, frozen=True):
    """What a RUN wrote, both streams in order."""

    data: bytes


class StepDone(Event, frozen=True):
    """``image`` is the digest of the state reached; "" for an empty root."""

    image: str


class Warned(Event, frozen=True):
    text: str


class Built(Event, frozen=True):
    image: str


class Tagged(Event, frozen=True):
    reference: str


Progress = Callable[[Event], None]


def render(event: Event) -> bytes:
    """The text of an event; with ``-q`` a caller prints none but the image's id."""
    match event:
        case Output(data):
            return data
        case StepStarted(number, total, text):
            line = f"Step {number}/{total} : {text}"
        case CacheUsed():
            line = " ---> Using cache"
        case ContainerStarted(identity):
            line = f" ---> Running in {identity[:12]}"
        case ContainerRemoved(identity):
            line = f" ---> Removed intermediate container {identity[:12]}"
        case StepDone(image):
            line = f" ---> {_short(image)}"
        case Built(image):
            line = f"Successfully built {_short(image)}"
        case Tagged(reference):
            line = f"Successfully tagged {reference}"
        case Warned(text):
            line = f"[Warning] {text}"
        case _:
            raise TypeError(type(event).__name__)
    return line.encode() + b"\n"


def _short(image: str) -> str:
    return image.removeprefix("sha256:")[:12]
