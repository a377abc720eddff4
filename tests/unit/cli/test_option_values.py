"""Option values: what is accepted, and the exact words of what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vmm.model import options
from vmm.model.errors import UsageError
from vmm.model.mounts import mount, tmpfs, volume
from vmm.model.ports import publish
from vmm.model.spec import Device, Log, Mount, Port, Restart, Ulimit

GOOD: list[tuple[Callable[[str], Any], str, Any]] = [
    (options.size, "0", 0),
    (options.size, "512m", 512 << 20),
    (options.size, "1.5g", 3 << 29),
    (options.size, "64KiB", 64 << 10),
    (options.size, "10 MB", 10 << 20),
    (options.size, "7b", 7),
    (options.memory, "6m", 6 << 20),
    (options.nano_cpus, "1.5", 1_500_000_000),
    (options.nano_cpus, ".5", 500_000_000),
    (options.nano_cpus, "0.01", 10_000_000),
    (options.cpuset, "0-2,5", "0-2,5"),
    (options.duration, "1h30m", 5400 * 10**9),
    (options.duration, "1.5s", 1_500_000_000),
    (options.duration, "250ms", 250_000_000),
    (options.probe_time, "0", 0),
    (options.probe_time, "0s", 0),
    (options.probe_time, "1ms", 1_000_000),
    (options.restart, "no", Restart()),
    (options.restart, "", Restart()),
    (options.restart, "on-failure:3", Restart(policy="on-failure", max_retries=3)),
    (options.restart, "unless-stopped", Restart(policy="unless-stopped")),
    (options.ulimit, "nofile=1024:2048", Ulimit(name="nofile", soft=1024, hard=2048)),
    (options.ulimit, "core=0", Ulimit(name="core", soft=0, hard=0)),
    (options.ulimit, "memlock=-1:-1", Ulimit(name="memlock", soft=-1, hard=-1)),
    (options.device, "/dev/fuse", Device(host_path="/dev/fuse", path="/dev/fuse")),
    (options.device, "/dev/a:/dev/b:rw", Device(host_path="/dev/a", path="/dev/b",
                                                permissions="rw")),
    (options.device, "/dev/a:r", Device(host_path="/dev/a", path="/dev/a", permissions="r")),
    (options.extra_host, "db:10.0.0.1", "db:10.0.0.1"),
    (options.extra_host, "db=[::1]", "db:::1"),
    (options.extra_host, "h:host-gateway", "h:host-gateway"),
    (options.stop_signal, "SIGUSR1", "SIGUSR1"),
    (options.stop_signal, "9", "9"),
    (options.hostname, "web.example.org", "web.example.org"),
    (options.network_mode, "default", "bridge"),
    (publish, "80", (Port(container_port=80),)),
    (publish, "8080:80", (Port(container_port=80, host_port=8080),)),
    (publish, "0.0.0.0:8080:80/udp", (Port(container_port=80, host_port=8080,
                                           host_ip="0.0.0.0", protocol="udp"),)),
    (publish, "127.0.0.1::80", (Port(container_port=80, host_ip="127.0.0.1"),)),
    (publish, "[::1]:8080:80", (Port(container_port=80, host_port=8080, host_ip="::1"),)),
    (publish, "8000-8001:80-81", (Port(container_port=80, host_port=8000),
                                  Port(container_port=81, host_port=8001))),
    (publish, "80-81", (Port(container_port=80), Port(container_port=81))),
    (publish, "published=8080,target=80", (Port(container_port=80, host_port=8080),)),
    (volume, "/inside", Mount(kind="volume", target="/inside", anonymous=True)),
    (volume, "/h/:/in/:ro", Mount(kind="bind", source="/h", target="/in", read_only=True)),
    (volume, "./h:/in", Mount(kind="bind", source="/h", target="/in")),
    (volume, "data:/in:nocopy", Mount(kind="volume", source="data", target="/in", nocopy=True)),
    (volume, "/h:/in:rslave", Mount(kind="bind", source="/h", target="/in",
                                    propagation="rslave")),
    (mount, "type=bind,src=/h,dst=/in,readonly",
     Mount(kind="bind", source="/h", target="/in", read_only=True)),
    (mount, 'type=bind,"source=/a,b",target=/in',
     Mount(kind="bind", source="/a,b", target="/in")),
    (mount, "source=data,target=/in", Mount(kind="volume", source="data", target="/in")),
    (mount, "target=/in", Mount(kind="volume", target="/in", anonymous=True)),
    (mount, "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700",
     Mount(kind="tmpfs", target="/t", size=1 << 20, mode=0o700)),
    (tmpfs, "/run", Mount(kind="tmpfs", target="/run")),
    (tmpfs, "/x:size=64m,mode=1777,noexec,ro",
     Mount(kind="tmpfs", target="/x", size=64 << 20, mode=0o1777, options=("noexec",),
           read_only=True)),
]  # fmt: skip

BAD: list[tuple[Callable[[str], Any], str, str]] = [
    (options.size, "abc", "invalid size: 'abc'"),
    (options.size, "", "invalid size: ''"),
    (options.size, "-1", "invalid size: '-1'"),
    (options.size, "1e9", "invalid size: '1e9'"),
    (options.size, "9" * 30, "invalid size: '" + "9" * 30 + "': too large"),
    (options.memory, "1m", "Minimum memory limit allowed is 6MB"),
    (options.nano_cpus, "x", "failed to parse x as a rational number"),
    (options.nano_cpus, "-1", "failed to parse -1 as a rational number"),
    (options.nano_cpus, "0.001", "invalid value 0.001: range of CPUs starts at 0.01"),
    (options.cpuset, "3-1", "invalid cpuset: '3-1'"),
    (options.duration, "5x", 'invalid duration "5x"'),
    (options.probe_time, "-1s", "it cannot be negative"),
    (options.probe_time, "999us", "it cannot be less than 1ms"),
    (options.probe_time, "-x", 'invalid duration "x"'),
    (options.restart, "sometimes", "invalid restart policy: unknown policy 'sometimes'; use one of "
     "'no', 'always', 'on-failure', or 'unless-stopped'"),
    (options.restart, "always:3",
     "invalid restart policy: maximum retry count can only be used with 'on-failure'"),
    (options.restart, "on-failure:x",
     "invalid restart policy format: maximum retry count must be a whole number"),
    (options.restart, ":1", "invalid restart policy format: no policy provided before colon"),
    (options.ulimit, "nofile", "invalid ulimit argument: nofile"),
    (options.ulimit, "nofile=2:1",
     "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
    (options.ulimit, "nofile=1:2:3",
     "too many limit value arguments - 1:2:3, can only have up to two, `soft[:hard]`"),
    (options.device, "/dev/a:/dev/b:x", "bad mode specified: x"),
    (options.device, "dev", "dev is not an absolute path"),
    (options.extra_host, "db", 'bad format for add-host: "db"'),
    (options.extra_host, "db:1.2.3", 'invalid IP address in add-host: "1.2.3"'),
    (options.dns_server, "ns.example", "ns.example is not an ip address"),
    (options.hostname, "-x", "invalid hostname: '-x'"),
    (options.network_mode, "container:web",
     "--network container:web: sharing another namespace is not supported"),
    (publish, "", "no port specified: "),
    (publish, "8080:", "no port specified: 8080:"),
    (publish, "x:80", "invalid hostPort: x"),
    (publish, "80:0", "invalid containerPort: 0"),
    (publish, "80:70000", "invalid containerPort: 70000"),
    (publish, "80:80/sctp", "invalid proto: sctp"),
    (publish, "1.2.3:80:80", "invalid IP address: 1.2.3"),
    (publish, "::1:80:80", "invalid publish specification: ::1:80:80"),
    (publish, "1-2:80-82",
     "invalid ranges specified for container and host Ports: 80-82 and 1-2"),
    (publish, "1-60000", "invalid containerPort: 1-60000: more than 1024 ports"),
    (volume, "/a:/b:ro:x", "invalid volume specification: '/a:/b:ro:x'"),
    (volume, ":/b", "invalid spec: :/b: empty section between colons"),
    (volume, "/a:/b:rx", "invalid mode: rx"),
    (volume, "/a:b", "invalid mount path: 'b' mount path must be absolute"),
    (volume, "/a:/", "invalid specification: destination can't be '/': /a:/"),
    (volume, "a/b:/x", 'create a/b: "a/b" includes invalid characters for a local volume name, only'
     ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'),
    (mount, "type=bind,source=/h", "target is required"),
    (mount, "type=bind,source=h,target=/in",
     "invalid mount path: 'h' mount path must be absolute"),
    (mount, "type=npipe,target=/x", "mount type 'npipe' is not supported"),
    (mount, "type=bind,bogus", "invalid field 'bogus' must be a key=value pair"),
    (mount, "type=bind,source=/h,target=/t,x=1",
     "unexpected key 'x' in 'type=bind,source=/h,target=/t,x=1' for type bind"),
    (mount, "type=tmpfs,source=/h,target=/t", "cannot use 'source' with a tmpfs mount"),
    (tmpfs, "run", "invalid mount path: 'run' mount path must be absolute"),
    (tmpfs, "/run:bogus", 'invalid tmpfs option ["bogus"]'),
    (tmpfs, "/run:mode=9", "invalid mode '9'"),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "text", "expected"), GOOD)
def test_accepted(parse: Callable[[str], Any], text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(("parse", "text", "message"), BAD)
def test_refused_in_these_words(parse: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.message == message
    assert caught.value.exit_code == 125


def test_a_bare_variable_comes_from_the_caller_or_is_left_out() -> None:
    env = options.environment(["A=1", "HOME", "NOPE", "B="], {"HOME": "/h"})
    assert env == ["A=1", "HOME=/h", "B="]


def test_env_file_has_comments_and_no_quoting() -> None:
    text = '\ufeff# comment\n\nA=1 # not a comment\n  B="x"\nC\n'
    assert options.env_file(text, "f") == ["A=1 # not a comment", 'B="x"', "C"]
    with pytest.raises(UsageError, match="f:2: variable 'A B' contains whitespaces"):
        options.env_file("X=1\nA B=1", "f")
    with pytest.raises(UsageError, match="f:1: no variable name"):
        options.env_file("=1", "f")


def test_swap_needs_a_memory_limit_that_it_exceeds() -> None:
    assert options.memory_swap("-1", 1 << 30) == -1
    assert options.memory_swap("2g", 1 << 30) == 2 << 30
    with pytest.raises(UsageError, match="You should always set the Memory limit"):
        options.memory_swap("1g", None)
    with pytest.raises(UsageError, match="should be larger than memory limit"):
        options.memory_swap("1m", 1 << 30)


def test_log_options() -> None:
    default = Log()
    assert options.log("", [], default) is None
    assert options.log("none", [], default) == Log(driver="none")
    chosen = options.log("json-file", ["max-size=1m", "max-file=2"], default)
    assert chosen == Log(max_size=1 << 20, max_file=2)
    for items, message in (
        (["x=1"], "unknown log opt 'x' for json-file log driver"),
        (["max-file=0"], "log-opt max-file: 0 is not between 1 and 1000"),
        (["max-size=1k"], "log-opt max-size is below 4k"),
    ):
        with pytest.raises(UsageError) as caught:
            options.log("", items, default)
        assert caught.value.message == message
    with pytest.raises(UsageError, match="log driver 'syslog' is not supported"):
        options.log("syslog", [], default)


def test_security_options() -> None:
    chosen = options.security(["no-new-privileges:true", "seccomp=unconfined"])
    assert chosen == (True, "unconfined", False)
    assert options.security(["systempaths=unconfined"]).unmask
    assert options.security(["seccomp=/p.json"]).seccomp == "/p.json"
    for bad in ("label=disable", "apparmor=x", "seccomp=", "x"):
        with pytest.raises(UsageError, match="invalid --security-opt"):
            options.security([bad])


def test_capabilities_are_spelled_one_way() -> None:
    assert options.capabilities(["net_admin", "CAP_NET_ADMIN", "all"]) == ("CAP_NET_ADMIN", "ALL")
    with pytest.raises(UsageError, match="invalid capability"):
        options.capabilities(["a b"])


def test_metadata_keys_are_checked() -> None:
    assert options.metadata(["owner=a=b", "lab:rack="]) == {"owner": "a=b", "lab:rack": ""}
    for bad in ("Owner=1", "owner", "=1", "a b=1"):
        with pytest.raises(UsageError):
            options.metadata([bad])


def test_times() -> None:
    now = 1_000_000 * 10**9
    assert options.timestamp("10m", now) == now - 600 * 10**9
    assert options.timestamp("12.5", now) == 12_500_000_000
    assert options.timestamp("1970-01-01T00:01:00.25Z", now) == 60_250_000_000
    assert options.timestamp("1970-01-01T01:00:00+01:00", now) == 0
    for bad in ("yesterday", "", "2026-13-01"):
        with pytest.raises(UsageError):
            options.timestamp(bad, now)
