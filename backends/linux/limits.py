"""Resource limits (setrlimit(2)): the defaults within the host's, and those asked for."""

from __future__ import annotations

from vmm.backends.linux.mountinfo import LIMIT_TITLES
from vmm.model.backend import HostFacts
from vmm.model.errors import Unsupported, UsageError
from vmm.model.launch import Op, op
from vmm.model.spec import Ulimit, WorkloadSpec

NAMES = frozenset(LIMIT_TITLES.values())
UNLIMITED = -1

#: Independent of whoever starts the workload, and as high as Docker's service has them.
DEFAULTS = (
    Ulimit(name="core", soft=UNLIMITED, hard=UNLIMITED),
    Ulimit(name="nofile", soft=1_048_576, hard=1_048_576),
    Ulimit(name="nproc", soft=UNLIMITED, hard=UNLIMITED),
)


def above(value: int, limit: int) -> bool:
    """Whether ``value`` exceeds ``limit``, -1 being unlimited."""
    return limit != UNLIMITED and (value == UNLIMITED or value > limit)


def check(ulimit: Ulimit, facts: HostFacts) -> None:
    """Raise for a limit that has no such name or that this host cannot give."""
    given = f"--ulimit {ulimit.name}={ulimit.soft}:{ulimit.hard}"
    if ulimit.name not in NAMES:
        raise UsageError(f"{given}: no such limit", "one of " + ", ".join(sorted(NAMES)))
    if above(ulimit.soft, ulimit.hard):
        raise UsageError(f"{given}: the soft limit is above the hard one")
    hard = facts.rlimits.get(ulimit.name, UNLIMITED)
    if above(ulimit.hard, hard) and not facts.can_raise_limits:
        raise Unsupported(
            f"{given}: backend container cannot go above this host's hard limit of {hard} "
            "without CAP_SYS_RESOURCE",
            f"ask for at most {hard}, or raise the limit of the session that starts vmm",
        )


def clamped(default: Ulimit, facts: HostFacts) -> Ulimit:
    """A default within the host's hard limit."""
    hard = facts.rlimits.get(default.name, UNLIMITED)
    if facts.can_raise_limits or not above(default.hard, hard):
        return default
    soft = hard if above(default.soft, hard) else default.soft
    return Ulimit(name=default.name, soft=soft, hard=hard)


def operations(spec: WorkloadSpec, facts: HostFacts) -> list[Op]:
    """One ``rlimit`` for each limit that is set."""
    chosen = {default.name: clamped(default, facts) for default in DEFAULTS}
    chosen.update((ulimit.name, ulimit) for ulimit in spec.resources.ulimits)
    return [op("rlimit", u.name, u.soft, u.hard) for u in chosen.values()]
