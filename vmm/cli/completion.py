"""Shell completion: a short script per shell that asks ``vmm __complete`` for words."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vmm.cli import context, table
from vmm.cli.output import line
from vmm.model.errors import UsageError, VmmError

_SCRIPTS = {
    "bash": """_vmm() {
    local IFS=$'\\n'
    COMPREPLY=($(vmm __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _vmm vmm""",
    "zsh": """#compdef vmm
_vmm() {
    local -a found
    found=(${(f)"$(vmm __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _vmm vmm""",
    "fish": """complete -c vmm -a \
'(vmm __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'""",
}
#: Commands whose arguments are images; those of CONTAINER are workloads.
_IMAGES = {"run", "create", "rmi", "tag", "history"}


def completion(shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish")]) -> None:
    """Print the completion script of a shell.

    Examples:
      source <(vmm completion bash)
      vmm completion fish > ~/.config/fish/completions/vmm.fish
    """
    if shell not in _SCRIPTS:
        raise UsageError(f"no completion for shell {shell!r:.80}", "use bash, zsh or fish")
    line(_SCRIPTS[shell])


def words(words: Annotated[list[str] | None, typer.Argument(metavar="WORD")] = None) -> None:
    """List what may follow the words given.

    The last word is the one being typed; it may be empty.

    Examples:
      vmm __complete image b
    """
    *before, typed = words or [""]
    for word in candidates(before):
        if word.startswith(typed) and (typed.startswith("-") or not word.startswith("-")):
            line(word)


def candidates(before: list[str]) -> list[str]:
    """All words that may come next."""
    if before[:1] == ["--root"]:
        context.use(before[1] if len(before) > 1 else None)
        before = before[2:]
    if not before:
        visible = [e.name for e in table.TOP.values() if not e.hidden]
        return [*table.GROUPS, *visible, "--root", "--version", "--help"]
    if before[0] in table.GROUPS and len(before) == 1:
        return [*table.GROUPS[before[0]][1], "--help"]
    entry = table.find(before[:2]) or table.find(before[:1])
    return [] if entry is None else [*_flags(entry), *_names(before, entry)]


def _flags(entry: table.Entry) -> list[str]:
    from vmm.cli.app import load

    params: list[Any] = load(entry).params
    return ["--help"] + [
        option
        for param in params
        if param.param_type_name == "option" and not getattr(param, "hidden", False)
        for option in param.opts
        if option.startswith("--")
    ]


def _names(before: list[str], entry: table.Entry) -> list[str]:
    """Names of workloads, images or volumes, as far as they can be read."""
    try:
        if before[0] == "volume":
            return [v.name for v in context.engine().volumes()]
        if before[0] == "image" or entry.name in _IMAGES:
            from vmm.cli.images import familiar

            short = familiar()
            return [short(r) for image in context.engine().images() for r in image.references]
        if "CONTAINER" in entry.usage:
            return [v.spec.name for v in context.engine().workloads(everything=True)]
    except (VmmError, OSError):
        return []
    return []
