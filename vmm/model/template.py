"""The subset of Go's text/template that ``--format`` needs, over plain JSON-like values.

Actions ``{{.A.B}}``, variables, ``if``, ``range``, ``with``, pipelines and parentheses
(https://pkg.go.dev/text/template), with Docker's functions (json, join, upper …).
Field names are keys of mappings; an unknown one is an error that lists the known ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vmm.model.errors import UsageError
from vmm.model.gotext import FUNCTIONS, Labelled, quote, text, truth

_HINT = "for the fields there are, try --format json"
_ACTION = re.compile(r"\{\{(- )?((?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|.)*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*"|`[^`]*`)
    |(?P<number>-?\d+(?:\.\d+)?)
    |(?P<field>(?:\.[A-Za-z_]\w*)+)|(?P<dot>\.)
    |(?P<variable>\$\w*)|(?P<word>[A-Za-z_]\w*)|(?P<mark>:=|[|(),=]))""",
    re.VERBOSE,
)
#: Mappings whose keys are the user's: one that is not there is no mistake in the template.
_OPEN = frozenset({"Labels", "Metadata", "Networks", "Options", "Ports", "Sysctls", "Volumes"})
#: Nesting of actions and of parentheses.
MAX_DEPTH = 50
MAX_TEMPLATE = 64 << 10


class Token(NamedTuple):
    kind: str
    text: str


class Action(NamedTuple):
    """One ``{{…}}`` or, with ``kind`` text, what is between two of them."""

    kind: str
    tokens: tuple[Token, ...]
    text: str


class Block(NamedTuple):
    """A node of the tree: text, output, or a control structure with its two bodies."""

    kind: str
    tokens: tuple[Token, ...] = ()
    text: str = ""
    body: tuple[Block, ...] = ()
    otherwise: tuple[Block, ...] = ()


Scope = dict[str, Any]


class Template:
    """A parsed template; ``render`` applies it to a value."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise UsageError("template parsing error: the template is too long", _HINT)
        self.source = source
        actions = list(_actions(source))
        self.blocks, rest, _ = _parse(actions, 0)
        if rest != len(actions):
            raise _error(f"unexpected {{{{{actions[rest].kind}}}}}")

    def render(self, value: Any) -> str:
        out: list[str] = []
        _run(self.blocks, value, {"$": value}, out)
        return "".join(out)


def _error(message: str) -> UsageError:
    return UsageError(f"template parsing error: {message}", _HINT)


def _actions(source: str) -> Iterator[Action]:
    position, trim = 0, False
    for match in _ACTION.finditer(source):
        between = source[position : match.start()]
        between = between.lstrip() if trim else between
        yield Action("text", (), between.rstrip() if match.group(1) else between)
        position, trim = match.end(), bool(match.group(3))
        body = match.group(2).strip()
        if not (body.startswith("/*") and body.endswith("*/")):
            yield _action(body)
    rest = source[position:]
    if "{{" in rest:
        raise _error("unclosed action")
    yield Action("text", (), rest.lstrip() if trim else rest)


def _action(body: str) -> Action:
    tokens = tuple(_tokens(body))
    if not tokens:
        raise _error("missing value for command")
    first = tokens[0]
    if first.kind != "word" or first.text not in {"if", "range", "with", "else", "end"}:
        return Action("output", tokens, body)
    if first.text == "else" and len(tokens) > 1:
        if tokens[1] != Token("word", "if"):
            raise _error(f"unexpected {tokens[1].text!r} after else")
        return Action("else if", tokens[2:], body)
    return Action(first.text, tokens[1:], body)


def _tokens(body: str) -> Iterator[Token]:
    position = 0
    while position < len(body.rstrip()):
        match = _TOKEN.match(body, position)
        if not match or not match.lastgroup:
            raise _error(f"unexpected {body[position:].strip()[:20]!r}")
        yield Token(match.lastgroup, match.group(match.lastgroup))
        position = match.end()


def _parse(
    actions: list[Action], position: int, depth: int = 0
) -> tuple[tuple[Block, ...], int, str]:
    """Blocks up to ``end`` or ``else``; where that is, and which of them it was."""
    if depth > MAX_DEPTH:
        raise _error(f"nested deeper than {MAX_DEPTH}")
    blocks: list[Block] = []
    while position < len(actions):
        action = actions[position]
        if action.kind in {"end", "else", "else if"}:
            if depth == 0:
                raise _error(f"unexpected {{{{{action.kind}}}}}")
            return tuple(blocks), position, action.kind
        position += 1
        if action.kind in {"if", "range", "with"}:
            block, position = _control(action, actions, position, depth)
            blocks.append(block)
        else:
            blocks.append(Block(action.kind, action.tokens, action.text))
    if depth:
        raise _error("unexpected EOF: {{end}} is missing")
    return tuple(blocks), position, ""


def _control(head: Action, actions: list[Action], position: int, depth: int) -> tuple[Block, int]:
    if not head.tokens:
        raise _error(f"missing value for {head.kind}")
    body, position, stop = _parse(actions, position, depth + 1)
    otherwise: tuple[Block, ...] = ()
    if stop == "else if":
        nested = Action("if", actions[position].tokens, "")
        block, position = _control(nested, actions, position + 1, depth + 1)
        return Block(head.kind, head.tokens, "", body, (block,)), position
    if stop == "else":
        otherwise, position, stop = _parse(actions, position + 1, depth + 1)
        if stop != "end":
            raise _error("expected {{end}} after {{else}}")
    return Block(head.kind, head.tokens, "", body, otherwise), position + 1


def _run(blocks: Sequence[Block], dot: Any, scope: Scope, out: list[str]) -> None:
    for block in blocks:
        if block.kind == "text":
            out.append(block.text)
        elif block.kind == "output":
            _output(block, dot, scope, out)
        elif block.kind == "range":
            _range(block, dot, scope, out)
        else:
            inner = dict(scope)
            value = _declared(block.tokens, dot, inner)
            chosen = block.body if truth(value) else block.otherwise
            _run(chosen, value if block.kind == "with" and truth(value) else dot, inner, out)


def _output(block: Block, dot: Any, scope: Scope, out: list[str]) -> None:
    tokens = block.tokens
    if len(tokens) > 2 and tokens[0].kind == "variable" and tokens[1].text in {":=", "="}:
        scope[tokens[0].text] = _pipeline(tokens[2:], dot, scope)
    else:
        out.append(text(_pipeline(tokens, dot, scope)))


def _declared(tokens: tuple[Token, ...], dot: Any, scope: Scope) -> Any:
    """The value of ``PIPELINE`` or ``$x := PIPELINE``."""
    if len(tokens) > 2 and tokens[0].kind == "variable" and tokens[1].text == ":=":
        value = _pipeline(tokens[2:], dot, scope)
        scope[tokens[0].text] = value
        return value
    return _pipeline(tokens, dot, scope)


def _range(block: Block, dot: Any, scope: Scope, out: list[str]) -> None:
    names, tokens = _range_names(block.tokens)
    items = _items(_pipeline(tokens, dot, scope))
    if not items:
        _run(block.otherwise, dot, dict(scope), out)
    for key, value in items:
        inner = dict(scope)
        inner.update(zip(names, (key, value)[2 - len(names) :], strict=True))
        _run(block.body, value, inner, out)


def _range_names(tokens: tuple[Token, ...]) -> tuple[list[str], tuple[Token, ...]]:
    """Variables of ``$k, $v := …`` (or ``$v := …``, or none) and the pipeline."""
    for count in (3, 1):
        head = tokens[:count]
        if len(tokens) > count + 1 and tokens[count].text == ":=":
            if any(t.kind != "variable" for t in head[::2]):
                break
            return [t.text for t in head[::2]], tokens[count + 1 :]
    return [], tokens


def _items(value: Any) -> list[tuple[Any, Any]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    raise _error(f"range can't iterate over {text(value)}")


def _pipeline(tokens: Sequence[Token], dot: Any, scope: Scope, depth: int = 0) -> Any:
    """Commands joined by ``|``: each gets the value before it as its last argument."""
    if depth > MAX_DEPTH:
        raise _error(f"nested deeper than {MAX_DEPTH}")
    commands: list[list[Token]] = [[]]
    level = 0
    for token in tokens:
        level += (token.text == "(") - (token.text == ")") if token.kind == "mark" else 0
        if token == Token("mark", "|") and level == 0:
            commands.append([])
        else:
            commands[-1].append(token)
    value: tuple[Any, ...] = ()
    for command in commands:
        value = (_command(command, dot, scope, value, depth),)
    return value[0]


def _command(
    tokens: list[Token], dot: Any, scope: Scope, piped: tuple[Any, ...], depth: int
) -> Any:
    if not tokens:
        raise _error("missing value for command")
    name = tokens[0].text
    if tokens[0].kind == "word" and name not in {"true", "false", "nil"}:
        arguments = [*_operands(tokens[1:], dot, scope, depth), *piped]
        return _call(name, arguments)
    if name == ".Label" and isinstance(dot, Labelled):
        arguments = [*_operands(tokens[1:], dot, scope, depth), *piped]
        if len(arguments) != 1:
            raise _error("wrong number of args for Label: want 1")
        return dot.labels.get(text(arguments[0]), "")
    operands = _operands(tokens, dot, scope, depth)
    if len(operands) != 1 or piped:
        raise _error(f"can't give argument to non-function {name}")
    return operands[0]


def _call(name: str, arguments: list[Any]) -> Any:
    function: Callable[..., Any] | None = FUNCTIONS.get(name)
    if function is None:
        raise _error(f'function "{name}" not defined')
    try:
        return function(*arguments)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise _error(f"error calling {name}: {error}") from None


def _operands(tokens: Sequence[Token], dot: Any, scope: Scope, depth: int) -> list[Any]:
    values: list[Any] = []
    position, adjacent = 0, False
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token == Token("mark", "("):
            end = _closing(tokens, position)
            values.append(_pipeline(tokens[position:end], dot, scope, depth + 1))
            position = end + 1
            adjacent = True
        elif adjacent and token.kind == "field":
            values.append(_fields(values.pop(), token.text))
        else:
            values.append(_operand(token, dot, scope))
            adjacent = token.kind == "variable"
    return values


def _closing(tokens: Sequence[Token], position: int) -> int:
    level = 1
    for index in range(position, len(tokens)):
        if tokens[index].kind == "mark":
            level += (tokens[index].text == "(") - (tokens[index].text == ")")
        if level == 0:
            return index
    raise _error("unclosed left paren")


def _operand(token: Token, dot: Any, scope: Scope) -> Any:
    if token.kind == "dot":
        return dot
    if token.kind == "field":
        return _fields(dot, token.text)
    if token.kind == "variable":
        if token.text not in scope:
            raise _error(f"undefined variable {quote(token.text)}")
        return scope[token.text]
    if token.kind == "string":
        return _unquote(token.text)
    if token.kind == "number":
        return float(token.text) if "." in token.text else int(token.text)
    if token.text in {"true", "false", "nil"}:
        return {"true": True, "false": False, "nil": None}[token.text]
    if token.kind == "word":
        return _call(token.text, [])
    raise _error(f"unexpected {token.text!r}")


def _unquote(literal: str) -> str:
    if literal[0] == "`":
        return literal[1:-1]
    escapes = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
    try:
        return re.sub(r"\\(.)", lambda m: escapes[m.group(1)], literal[1:-1])
    except KeyError as error:
        raise _error(f"unknown escape in {literal}: {error}") from None


def _fields(value: Any, path: str) -> Any:
    parent = ""
    for name in path[1:].split("."):
        if value is None:
            raise _error(f"nil value has no field {name} (in {path})")
        if not isinstance(value, Mapping):
            raise _error(f"can't evaluate field {name} of {text(value):.40} (in {path})")
        if name not in value and parent not in _OPEN:
            known = ", ".join(sorted(str(k) for k in value)[:60])
            raise _error(f"no field {name} (in {path}); there are: {known}")
        value, parent = value.get(name) if parent in _OPEN else value[name], name
    return value
