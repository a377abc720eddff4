"""Specs and states as Docker shows them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from vmm.cli.output import align
from vmm.engine import imageviews
from vmm.engine.views import (
    WorkloadView,
    inspect,
    matches,
    parse_filters,
    port_lines,
    ps_row,
    status_text,
)
from vmm.model import human
from vmm.model.backend import Endpoint, WorkloadPaths
from vmm.model.errors import UsageError
from vmm.model.image import ContainerConfig, History, Image, ImageConfig, RootFS
from vmm.model.spec import Mount, Network, Port, Process, Resources, Restart, WorkloadSpec
from vmm.model.state import State

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
ID = "ab" * 32
PATHS = WorkloadPaths(
    directory=f"/r/{ID}", run="/run/x", state="/s", log="/l", events="/e", hosts="/h",
    hostname="/n", resolv_conf="/c", libexec="/x",
)  # fmt: skip
PORTS = (
    Port(container_port=80, host_ip="127.0.0.1", host_port=8080),
    Port(container_port=81, host_ip="127.0.0.1", host_port=8081),
    Port(container_port=80, host_ip="::1", host_port=8080),
    Port(container_port=53, host_ip="127.0.0.1", host_port=5300, protocol="udp"),
)


def view(**state: Any) -> WorkloadView:
    status = state.pop("status", "running")
    spec = WorkloadSpec(
        id=ID,
        name="web",
        backend="container",
        image="nginx:1",
        image_id="sha256:" + "cd" * 32,
        created=NOW - 300 * SECOND,
        process=Process(entrypoint=("/entry",), cmd=("-g", "daemon off;"), env=("A=1",)),
        mounts=(
            Mount(kind="bind", source="/h", target="/in", read_only=True),
            Mount(kind="volume", source="data", target="/data"),
            Mount(kind="tmpfs", target="/t", size=1024, mode=0o700),
        ),
        resources=Resources(memory=1 << 29, nano_cpus=1_500_000_000),
        network=Network(
            hostname="web", exposed=("443/tcp", "80/tcp"), ports=(Port(container_port=80),)
        ),
        restart=Restart(policy="on-failure", max_retries=3),
        labels={"a": "1", "b": "2"},
        metadata={"owner": "x"},
    )
    live = status == "running"
    return WorkloadView(
        spec=spec,
        state=State(status=status, **state),
        paths=PATHS,
        endpoint=Endpoint(bridge="vmm0", link="vab", address="172.17.0.2", prefix=20,
                          gateway="172.17.0.1", mac="02:42:ac:11:00:02") if live else None,
        ports=PORTS if live else (),
        volumes_root="/r/volumes",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State(status="created"), "Created"),
        (State(status="running", started=NOW - 300 * SECOND), "Up 5 minutes"),
        (State(status="paused", started=NOW - 1 * SECOND), "Up 1 second (Paused)"),
        (State(status="exited", exit_code=137, finished=NOW - 3 * SECOND),
         "Exited (137) 3 seconds ago"),
        (State(status="restarting", exit_code=1, finished=NOW), "Restarting (1) Less than a second"
         " ago"),
        (State(status="dead"), "Dead"),
    ],
)  # fmt: skip
def test_status(state: State, text: str) -> None:
    assert status_text(state, NOW) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
     (119, "About a minute"), (120, "2 minutes"), (3600, "About an hour"), (7200, "2 hours"),
     (47 * 3600, "47 hours"), (48 * 3600, "2 days"), (14 * 86400, "2 weeks"),
     (60 * 86400, "2 months"), (800 * 86400, "2 years")],
)  # fmt: skip
def test_durations(seconds: int, text: str) -> None:
    assert human.duration(seconds * SECOND) == text


def test_sizes() -> None:
    shown = [human.size(n) for n in (0, 999, 1240, 4_261_234, 117_000_000, 5 * 10**12)]
    assert shown == ["0B", "999B", "1.24kB", "4.26MB", "117MB", "5TB"]


def test_times() -> None:
    assert human.rfc3339(0) == "0001-01-01T00:00:00Z"
    assert human.rfc3339(1_500_000_000) == "1970-01-01T00:00:01.5Z"
    assert human.parse_rfc3339("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert human.parse_rfc3339("nonsense") == human.parse_rfc3339("") == 0


def test_ps_row() -> None:
    row = ps_row(view(started=NOW - SECOND), NOW)
    assert row["ID"] == "abababababab"
    assert row["Command"] == '"/entry -g \'daemon o…"'
    assert row["RunningFor"] == "5 minutes ago"
    assert row["Ports"] == (
        "127.0.0.1:8080-8081->80-81/tcp, 127.0.0.1:5300->53/udp, [::1]:8080->80/tcp, 443/tcp"
    )
    assert (row["Labels"], row["Mounts"], row["Networks"]) == ("a=1,b=2", "/h,data", "bridge")
    full = ps_row(view(status="exited"), NOW, truncate=False)
    assert (full["ID"], full["Ports"]) == (ID, "")
    assert full["Command"] == "\"/entry -g 'daemon off;'\""


def test_port_lines() -> None:
    assert port_lines(view()) == [
        ("53/udp", "127.0.0.1:5300"),
        ("80/tcp", "127.0.0.1:8080"),
        ("80/tcp", "[::1]:8080"),
        ("81/tcp", "127.0.0.1:8081"),
    ]


def test_inspect_has_dockers_shape() -> None:
    shown = inspect(view(pid=42, started=NOW))
    assert (shown["Id"], shown["Name"], shown["Path"]) == (ID, "/web", "/entry")
    assert shown["Args"] == ["-g", "daemon off;"]
    assert shown["State"]["Running"] and shown["State"]["Pid"] == 42
    assert shown["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    config, host = shown["Config"], shown["HostConfig"]
    assert config["Cmd"] == ["-g", "daemon off;"] and config["Entrypoint"] == ["/entry"]
    assert config["ExposedPorts"] == {"443/tcp": {}, "80/tcp": {}}
    assert host["Binds"] == ["/h:/in:ro", "data:/data"]
    assert host["Tmpfs"] == {"/t": "size=1024,mode=700"}
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": ""}]}
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert (host["Memory"], host["NanoCpus"]) == (1 << 29, 1_500_000_000)
    bind, volume = shown["Mounts"]
    assert (bind["Type"], bind["RW"], bind["Mode"]) == ("bind", False, "ro")
    assert volume["Source"] == "/r/volumes/data/_data" and volume["Name"] == "data"
    settings = shown["NetworkSettings"]
    assert settings["IPAddress"] == "172.17.0.2"
    assert settings["Networks"]["bridge"]["Gateway"] == "172.17.0.1"
    assert settings["Ports"]["443/tcp"] is None
    assert settings["Ports"]["80/tcp"] == [
        {"HostIp": "127.0.0.1", "HostPort": "8080"},
        {"HostIp": "::1", "HostPort": "8080"},
    ]
    assert (shown["Backend"], shown["Metadata"]) == ("container", {"owner": "x"})


def test_inspect_of_a_stopped_one_has_no_address() -> None:
    shown = inspect(view(status="exited", exit_code=3, pid=42))
    assert shown["State"]["Pid"] == 0 and shown["State"]["ExitCode"] == 3
    assert shown["NetworkSettings"]["Ports"] == {}
    assert shown["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ([], True),
        (["id=abab"], True),
        (["id=cd"], False),
        (["name=we"], True),
        (["name=x", "name=web"], True),
        (["label=a"], True),
        (["label=a=1", "label=b=2"], True),
        (["label=a", "label=c"], False),
        (["status=running"], True),
        (["status=exited"], False),
        (["exited=0"], False),
        (["ancestor=nginx:1"], True),
        (["ancestor=cdcdcdcdcdcd"], True),
        (["ancestor=nginx"], False),
        (["volume=data"], True),
        (["network=host"], False),
        (["backend=container", "name=web"], True),
    ],
)
def test_filters(filters: list[str], passes: bool) -> None:
    assert matches(view(), parse_filters(filters)) is passes


def test_filter_faults() -> None:
    for bad, message in (
        ("x", "invalid filter 'x'"),
        ("foo=1", "invalid filter 'foo'"),
        ("status=up", "invalid filter 'status=up'"),
    ):
        with pytest.raises(UsageError) as caught:
            parse_filters([bad])
        assert caught.value.message == message


IMAGE = Image(
    id="sha256:" + "12" * 32,
    manifest_digest="sha256:" + "34" * 32,
    config=ImageConfig(
        architecture="amd64",
        os="linux",
        created="2023-11-14T22:13:20Z",
        config=ContainerConfig(cmd=["sh"], labels={"a": "1"}),
        rootfs=RootFS(diff_ids=["sha256:a", "sha256:b"]),
        history=[
            History(created="2023-11-14T22:13:20Z", created_by="base", comment="imported"),
            History(created_by='CMD ["sh"]', empty_layer=True),
            History(created_by="RUN " + "x" * 60),
        ],
    ),
    chain_ids=("sha256:c", "sha256:d"),
    size=4_261_234,
    references=("docker.io/library/busybox:1", "localhost:5000/me/box:dev"),
)


def familiar(reference: str) -> str:
    return reference.removeprefix("docker.io/library/")


def test_image_rows() -> None:
    rows = imageviews.rows(IMAGE, familiar, NOW + 60 * SECOND, truncate=True)
    names = [(row["Repository"], row["Tag"]) for row in rows]
    assert names == [("busybox", "1"), ("localhost:5000/me/box", "dev")]
    assert rows[0]["ID"] == "121212121212"
    assert (rows[0]["Size"], rows[0]["CreatedSince"]) == ("4.26MB", "About a minute ago")


def test_image_inspect() -> None:
    shown = imageviews.inspect(IMAGE, familiar)
    assert shown["RepoTags"] == ["busybox:1", "localhost:5000/me/box:dev"]
    assert shown["RepoDigests"] == [
        f"busybox@{IMAGE.manifest_digest}",
        f"localhost:5000/me/box@{IMAGE.manifest_digest}",
    ]
    assert shown["RootFS"] == {"Type": "layers", "Layers": ["sha256:a", "sha256:b"]}
    assert shown["Config"]["Cmd"] == ["sh"]


def test_history_puts_sizes_on_steps_with_layers() -> None:
    steps = imageviews.history(IMAGE, [1000, 2000], NOW, truncate=True)
    assert [step["Size"] for step in steps] == ["2kB", "0B", "1kB"]
    assert [step["ID"] for step in steps] == ["121212121212", "<missing>", "<missing>"]
    assert len(steps[0]["CreatedBy"]) == 45 and steps[0]["CreatedBy"].endswith("…")


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({"dangling": ["true"]}, False),
        ({"dangling": ["false"]}, True),
        ({"label": ["a=1"]}, True),
        ({"label": ["b"]}, False),
        ({"reference": ["busy*"]}, True),
        ({"reference": ["busybox:2"]}, False),
        ({"before": ["busybox:1"]}, False),
    ],
)
def test_image_filters(filters: dict[str, list[str]], passes: bool) -> None:
    assert imageviews.matches(IMAGE, filters, familiar, [IMAGE]) is passes


def test_columns_are_aligned_as_dockers() -> None:
    rows = [["ID", "NAME", "X"], ["abcdefghijkl", "n", "long text"]]
    assert align(rows) == ["ID             NAME      X", "abcdefghijkl   n         long text"]


def test_local_time_names_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert human.local(0) == "1970-01-01 00:00:00 +0000 UTC"


def test_a_reference_filter_shows_only_the_rows_it_names() -> None:
    rows = imageviews.rows(IMAGE, familiar, NOW, truncate=True)
    assert [r["Tag"] for r in rows if imageviews.row_matches(r, ["busybox"])] == ["1"]
    assert [r["Tag"] for r in rows if imageviews.row_matches(r, ["localhost:5000/me/*:dev"])] == [
        "dev"
    ]
    assert not any(imageviews.row_matches(r, ["busybox", "other"]) for r in rows)
