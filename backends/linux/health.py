"""The health check as the shim carries it out: Docker's defaults, in milliseconds."""

from __future__ import annotations

from vmm.model import human
from vmm.model.launch import Op, op
from vmm.model.spec import Health

_MS = 10**6
_SECOND = 10**9
#: Docker's (moby, daemon/health.go).
INTERVAL = TIMEOUT = 30 * _SECOND
START_INTERVAL = 5 * _SECOND
RETRIES = 3
#: What the shim takes (native/shim/config.c), for images that say anything.
_LONGEST, _MOST = 2**60, 2**31 - 1


def operation(check: Health, log: str, operations: bytes) -> Op:
    """``health`` of section ``shim``: rhythm, bounds, and the encoded exec of a probe."""
    timeout = check.timeout if check.timeout > 0 else TIMEOUT
    return op(
        "health",
        log,
        _milliseconds(check.interval, INTERVAL),
        _milliseconds(timeout, TIMEOUT),
        _milliseconds(check.start_period, 0),
        _milliseconds(check.start_interval, START_INTERVAL),
        min(check.retries, _MOST) if check.retries > 0 else RETRIES,
        human.go_duration(timeout),
        operations,
    )


def _milliseconds(nanoseconds: int, default: int) -> int:
    """Rounded up, so that what is short does not become nothing."""
    return min(-(-(nanoseconds if nanoseconds > 0 else default) // _MS), _LONGEST)
