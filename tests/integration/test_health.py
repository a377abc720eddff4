"""The health check of a container, from the image or from options, as Docker shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.instance import Instance, until

DOCKERFILE = """\
FROM busybox
RUN ln -s /bin/busybox /bin/named
SHELL ["/bin/busybox", "ash", "-c"]
USER 1000
WORKDIR /tmp
HEALTHCHECK --interval=150ms --timeout=9s --retries=2 \\
  CMD readlink /proc/$$/exe; id -u; pwd; test -e ok
CMD ["sleep", "1000"]
"""


def health(vmm: Instance, name: str) -> dict[str, Any]:
    found: dict[str, Any] = vmm.inspect(name)["State"]["Health"]
    return found


def becomes(vmm: Instance, name: str, status: str) -> None:
    until(lambda: health(vmm, name)["Status"] == status)


def listed(vmm: Instance, *filters: str) -> list[str]:
    words = [word for item in filters for word in ("--filter", item)]
    return vmm.out("ps", "-a", "--format", "{{.Names}}", *words).split()


def events(vmm: Instance, name: str) -> list[str]:
    lines = (vmm.root / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if '"health_status' in line]
    return [e["Action"] for e in found if e["Actor"]["Attributes"]["name"] == name]


def test_the_image_s_health_check(vmm: Instance, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    vmm.run("build", "-q", "-t", "checked", str(tmp_path))
    vmm.run("run", "-d", "--name", "checked", "--cap-drop", "all", "checked")
    becomes(vmm, "checked", "unhealthy")
    assert "(unhealthy)" in vmm.out("ps")
    assert listed(vmm, "health=unhealthy") == ["checked"]
    assert listed(vmm, "health=healthy") == listed(vmm, "health=none") == []
    seen = health(vmm, "checked")
    assert seen["FailingStreak"] >= 2
    last = seen["Log"][-1]
    assert (last["ExitCode"], last["Output"]) == (1, "/bin/busybox\n1000\n/tmp\n")
    assert last["Start"] < last["End"]
    vmm.run("exec", "checked", "touch", "ok")
    becomes(vmm, "checked", "healthy")
    _paused_and_stopped(vmm)
    vmm.run("rm", "-f", "checked")
    assert vmm.traces() == []


def _paused_and_stopped(vmm: Instance) -> None:
    """What is not probed is not healthy; a start begins again and keeps the log."""
    vmm.run("pause", "checked")
    before = health(vmm, "checked")
    assert before["Status"] == "unhealthy"
    assert "(Paused)" in vmm.out("ps")
    assert health(vmm, "checked") == before
    vmm.run("unpause", "checked")
    becomes(vmm, "checked", "healthy")
    vmm.run("stop", "-t", "0", "checked")
    stopped = health(vmm, "checked")
    assert (stopped["Status"], len(stopped["Log"])) == ("unhealthy", 5)
    vmm.run("start", "checked")
    becomes(vmm, "checked", "healthy")
    states = ["unhealthy", "healthy", "healthy", "healthy"]
    assert events(vmm, "checked") == [f"health_status: {state}" for state in states]


def test_options_win_over_the_image(vmm: Instance, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    vmm.run("build", "-q", "-t", "checked", str(tmp_path))
    vmm.run("create", "--name", "other", "--health-cmd", "true", "--health-retries", "7", "checked")
    assert vmm.inspect("other")["Config"]["Healthcheck"] == {
        "Test": ["CMD-SHELL", "true"],
        "Interval": 150_000_000,
        "Timeout": 9_000_000_000,
        "Retries": 7,
    }
    assert "Health" not in vmm.inspect("other")["State"]
    vmm.run("start", "other")
    becomes(vmm, "other", "healthy")
    vmm.run("run", "-d", "--name", "none", "--no-healthcheck", "checked")
    assert vmm.inspect("none")["Config"]["Healthcheck"]["Test"] == ["NONE"]
    vmm.run("run", "-d", "--name", "plain", "busybox", "sleep", "1000")
    for name in ("none", "plain"):
        assert "Health" not in vmm.inspect(name)["State"]
    assert sorted(listed(vmm, "health=none")) == ["none", "plain"]
    assert "(" not in vmm.out("ps", "--filter", "name=plain", "--format", "{{.Status}}")
    assert "health /" in vmm.out("explain", "other")
    assert "health /" not in vmm.out("explain", "none")
    vmm.run("rm", "-f", "other", "none", "plain")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--no-healthcheck", "--health-cmd", "x"), "conflicts with --health-* options"),
        (("--health-interval", "-1s"), "cannot be negative"),
        (("--health-timeout", "10us"), "cannot be less than 1ms"),
        (("--health-start-period", "soon"), "invalid duration"),
        (("--health-retries", "-1"), "--health-retries"),
    ],
)
def test_what_docker_refuses(vmm: Instance, words: tuple[str, ...], said: str) -> None:
    done = vmm.run("create", *words, "busybox", "true", check=False)
    assert done.returncode == 125
    assert said in done.stderr


def test_an_unknown_filter(vmm: Instance) -> None:
    done = vmm.run("ps", "--filter", "health=well", check=False)
    assert done.returncode == 125
    assert "health=well" in done.stderr
