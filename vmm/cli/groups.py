"""Options that commands share: a class of annotated fields, spread over a function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_type_hints


class Options:
    """Base of option classes: each annotated field with a default is one option."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The fields as keyword parameters, those of base classes first."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=getattr(cls, name), annotation=hint
            )
            for name, hint in hints.items()
        ]


def spread(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with each Options parameter replaced by its fields."""
    hints = get_type_hints(function, include_extras=True)
    groups = {n: h for n, h in hints.items() if inspect.isclass(h) and issubclass(h, Options)}
    if not groups:
        return function

    @wraps(function)
    def spreaded(**values: Any) -> Any:
        made = {}
        for name, group in groups.items():
            fields = {p.name: values.pop(p.name) for p in group.parameters()}
            made[name] = group(**fields)
        return function(**values, **made)

    signature = inspect.signature(function)
    parameters = [
        p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for p in signature.parameters.values()
        if p.name not in groups
    ]
    for group in groups.values():
        parameters += group.parameters()
    spreaded.__annotations__ = {p.name: p.annotation for p in parameters}
    del spreaded.__wrapped__
    spreaded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return spreaded
