"""What users get wrong, and damaged stores: a clear error, a way out, nothing half done."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instance import Instance

#: Options of ``run``, and words that the message and its advice must have.
WRONG_OPTIONS = [
    ("--memory=5m", 'invalid argument "5m" for "-m, --memory" flag', "6m"),
    ("--memory=lots", "invalid size: 'lots'", "512m"),
    ("--memory=1g --memory-swap=10m", "larger than memory limit", "-1 is unlimited"),
    ("--cpus=0", "range of CPUs starts at 0.01", "--cpus 0.5"),
    ("--cpuset-cpus=4095", "--cpuset-cpus 4095", "choose among"),
    ("--pids-limit=many", "'many' is not a whole number", "--pids-limit"),
    ("--shm-size=x", "invalid size: 'x'", "512m"),
    ("--ulimit=nofile", "invalid ulimit argument", "nofile=1024:2048"),
    ("--ulimit=bogus=1", "no such limit", "nofile"),
    ("--cap-add=NOPE", "CAP_NOPE: no such capability", "NET_ADMIN"),
    ("--sysctl=kernel.hostname=x", "--sysctl kernel.hostname", "net.*"),
    ("--device=/dev/nope", "--device /dev/nope: No such file", "device node"),
    ("--security-opt=apparmor=x", "invalid --security-opt", "seccomp=unconfined"),
    ("--restart=sometimes", "unknown policy 'sometimes'", "unless-stopped"),
    ("--stop-signal=FOO", "Invalid signal: FOO", "kill -l"),
    ("--log-driver=syslog", "log driver 'syslog' is not supported", "json-file"),
    ("--log-opt=bogus=1", "unknown log opt 'bogus'", "max-size"),
    ("-p=70000:80", "invalid hostPort: 70000", "8080:80"),
    ("-p=80:0", "invalid containerPort: 0", "8080:80"),
    ("-p=1-3:1-2", "invalid ranges specified", "8000-8002:80-82"),
    ("-p=300.0.0.1:1:1", "invalid IP address: 300.0.0.1", "127.0.0.1"),
    ("-p=80:80/sctp", "invalid proto: sctp", "udp"),
    ("--network=nope", "network 'nope' not found", "bridge, none or host"),
    ("--network=container:x", "sharing another namespace is not supported", "bridge"),
    ("--network=none -p=80:80", "cannot be published with --network none", "drop -p"),
    ("--backend=nope", "unknown backend 'nope'", "container"),
    ("--dns=x", "x is not an ip address", "192.0.2.1"),
    ("--add-host=x", "bad format for add-host", "NAME:ADDRESS"),
    ("--hostname=-x", "invalid hostname: '-x'", "letters"),
    (f"--hostname={'a' * 40}.{'b' * 40}", "invalid hostname", "64"),
    ("-w=relative", "needs to be an absolute path", "--workdir"),
    ("-u=nosuchuser", "unable to find user nosuchuser", "use a number"),
    ("-e==x", "invalid environment variable", "KEY=VALUE"),
    ("--env-file=/nope", "open /nope: No such file or directory", "--env-file"),
    ("-v=relative/dir:/x", "includes invalid characters for a local volume name", "absolute path"),
    ("-v=/nope:/x", "bind source path does not exist: /nope", "mkdir -p /nope"),
    ("--mount=type=bind,source=/nope,target=/x", "does not exist: /nope", "mkdir -p /nope"),
    ("--mount=type=npipe,target=/x", "mount type 'npipe' is not supported", "tmpfs"),
    ("-v=/tmp:/x -v=/etc:/x", "Duplicate mount point: /x", "once"),
    ("-v=/tmp:/", "destination can't be '/'", "/inside"),
    ("--tmpfs=/x:bogus", 'invalid tmpfs option ["bogus"]', "size=64m"),
    ("--cidfile=/nope/id", "failed to create the container ID file /nope/id", "writable"),
    ("--meta=novalue", "invalid metadata", "KEY=VALUE"),
    ("--read-only=maybe", 'invalid argument "maybe" for "--read-only" flag', "vmm run --help"),
    ("--rm --restart=always", "Conflicting options: --restart and --rm", "drop one"),
    ("-d -a=stdout", "Conflicting options: -a and -d", "drop one"),
    ("-it", "the input device is not a TTY", "drop -t"),
    ("--bogus", "unknown flag: --bogus", "See 'vmm run --help'"),
    ("-Z", "unknown shorthand flag: 'Z' in -Z", "See 'vmm run --help'"),
    ("--link=a", "--link is not supported by vmm run", "by name"),
    ("--gpus=all", "--gpus is not supported by vmm run", "--device"),
    ("--userns=host", "--userns is not supported by vmm run", "user namespaces"),
]

HOSTILE_NAMES = ["../../x", "a/b", "x" * 256, "a\n\x1b[2J", "..%2f..%2fx"]


@pytest.fixture
def spare(vmm: Instance, tmp_path: Path) -> Iterator[Instance]:
    """An instance of its own to be damaged, with busybox in it."""
    made = Instance(tmp_path / "spare", vmm.namespace)
    made.run("image", "bootstrap", "busybox")
    yield made
    assert made.traces() == []
    shutil.rmtree(made.run_dir)


def refused(vmm: Instance, *argv: str, code: int = 125) -> str:
    """The message of a command that must fail with this exit code, in words, printing nothing."""
    done = vmm.run(*argv, check=False)
    assert done.returncode == code, (argv, done.returncode, done.stderr, done.stdout)
    assert done.stderr.startswith("vmm: ") and "unexpected" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "VMM_DEBUG" not in done.stderr, done.stderr
    assert all(c.isprintable() or c == "\n" for c in done.stderr), repr(done.stderr)
    return done.stderr


def test_wrong_options_are_refused_before_anything_is_made(vmm: Instance) -> None:
    for options, *words in WRONG_OPTIONS:
        said = refused(vmm, "run", *options.split(" "), "busybox", "true")
        assert all(word in said for word in words), (options, said)
    assert vmm.out("ps", "-aq") == vmm.out("volume", "ls", "-q") == ""
    kept = [p for name in ("workloads", "builds", "journal") for p in (vmm.root / name).iterdir()]
    assert kept == []


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ("frobnicate", 125, ["'frobnicate' is not a vmm command", "vmm --help"]),
        ("run", 125, ['"vmm run" requires at least 1 argument', "Usage:", "vmm run --help"]),
        ("pull busybox", 125, ["vmm pull is not supported", "vmm image bootstrap"]),
        ("exec nope true", 1, ["No such container: nope", "vmm ps -a"]),
        ("rm nope", 1, ["No such container: nope", "vmm ps -a"]),
        ("rmi nope", 1, ["No such image: nope"]),
        ("volume rm nope", 1, ["No such volume: nope"]),
        ("run nope true", 125, ["No such image: nope", "vmm image import", "vmm build"]),
        ("run debian:bookworm true", 125, ["vmm image bootstrap debian:bookworm"]),
        ("tag busybox UPPER", 125, ["must be lowercase", "write upper"]),
        ("ps --filter bogus=1", 125, ["invalid filter 'bogus'", "known: "]),
        ("ps --format {{", 125, ["template parsing error", "json"]),
        ("build /nope", 125, ['path "/nope" not found', "directory"]),
        ("image import /nope x", 125, ["/nope", "no such file"]),
        ("image import /etc/passwd x", 1, ["/etc/passwd"]),
        ("logs --tail=x y", 125, ["'x' is not a whole number"]),
    ],
)  # fmt: skip
def test_wrong_commands(vmm: Instance, argv: str, code: int, words: list[str]) -> None:
    said = refused(vmm, *argv.split(), code=code).lower()
    assert all(word.lower() in said for word in words), said


def test_a_name_taken_leaves_its_owner_alone(vmm: Instance) -> None:
    first = vmm.out("create", "--name", "mine", "busybox", "true")
    said = refused(vmm, "run", "-v", "left:/x", "--name", "mine", "busybox", "true")
    assert 'The name "mine" is already in use' in said and first[:12] in said
    vmm.run("create", "--name", "other", "busybox", "true")
    assert "already in use" in refused(vmm, "rename", "other", "mine", code=1)
    assert vmm.inspect("mine")["Id"] == first
    assert vmm.out("volume", "ls", "-q") == ""


def test_hostile_names_of_every_kind(vmm: Instance, tmp_path: Path) -> None:
    outside = sorted(vmm.root.parent.iterdir())
    vmm.run("create", "--name", "good", "busybox", "true")
    for name in HOSTILE_NAMES:
        commands = [
            ["create", f"--name={name}", "busybox", "true"],
            ["rename", "good", name],
            ["volume", "create", name],
            ["create", "--mount", f"source={name},target=/x", "busybox", "true"],
            ["create", name, "true"],
            ["inspect", name],
        ]
        if name not in {"a/b", "x" * 256}:  # good image references and metadata keys
            commands += [["tag", "busybox", name], ["meta", "set", "good", f"{name}=v"]]
        for argv in commands:
            _assert_refused(argv, vmm.run(*argv, check=False))
    for argv in (["network", "inspect"], ["volume", "rm"], ["rm"], ["logs"], ["rmi"]):
        _assert_refused(argv, vmm.run(*argv, "../../x", check=False))
    assert sorted(vmm.root.parent.iterdir()) == outside
    assert vmm.out("ps", "-a", "--format", "{{.Names}}") == "good"
    assert vmm.out("volume", "ls", "-q") == vmm.out("meta", "ls", "good") == ""


def _assert_refused(argv: list[str], done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode in (1, 125), (argv, done)
    assert "unexpected" not in done.stderr and "VMM_DEBUG" not in done.stderr, (argv, done.stderr)
    shown = done.stderr.replace("\n", " ")
    assert shown.isprintable() and len(shown) < 1000, (argv, done.stderr)


def test_all_faults_of_a_dockerfile_are_named_with_their_lines(
    vmm: Instance, tmp_path: Path
) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(
        "FROM busybox\n"
        "FROBNICATE x\n"
        "RUN touch /never\n"
        "COPY only-one\n"
        "EXPOSE 80 \\\n  99999\n"
        "ENV\n"
        "ONBUILD RUN true\n"
        "RUN --mount=type=cache,target=/x true\n"
    )
    said = refused(vmm, "build", "-t", "wrong", str(tmp_path), code=1)
    for line, word in ((2, "FROBNICATE"), (4, "COPY"), (7, "ENV"), (8, "ONBUILD"), (9, "--mount")):
        assert any(f"line {line}:" in one and word in one for one in said.splitlines()), said
    assert vmm.out("images", "-q", "wrong") == ""
    path.write_text("FROM busybox\nRUN true\nEXPOSE 99999\n")
    assert "line 3" in refused(vmm, "build", "-t", "wrong", str(tmp_path), code=1)
    path.write_text("FROM busybox\nCOPY ../secret /\n")
    assert "line 2" in refused(vmm, "build", "-t", "wrong", str(tmp_path), code=1)
    path.write_text("FROM nope\n")
    assert "No such image: nope" in refused(vmm, "build", str(tmp_path), code=1)
    path.write_text("")
    assert str(path) in refused(vmm, "build", str(tmp_path), code=1)
    assert vmm.out("images", "-q", "wrong") == ""


def test_a_damaged_store_is_named_and_said_how_to_mend(spare: Instance) -> None:
    image = json.loads(spare.out("image", "inspect", "busybox"))[0]
    images, layers = spare.root / "images", spare.root / "layers"
    config = images / "blobs/sha256" / image["Id"].removeprefix("sha256:")
    hurt = {config: config.read_bytes()[:-9], images / "index.json": b'{"manifests": 7'}
    for path, damage in hurt.items():
        good = path.read_bytes()
        path.write_bytes(damage)
        said = refused(spare, "run", "--network=none", "busybox", "true")
        assert path.name in said or image["Id"][7:19] in said, said
        assert spare.run("system", "check", check=False).returncode != 0
        path.write_bytes(good)
    moved = [entry for entry in layers.iterdir() if entry.is_dir()]
    for entry in moved:
        entry.rename(spare.root / entry.name)
    said = refused(spare, "run", "--network=none", "busybox", "true")
    assert "layer" in said and "missing" in said, said
    assert "layer" in spare.run("system", "check", check=False).stdout
    for entry in moved:
        (spare.root / entry.name).rename(entry)
    assert spare.out("run", "--rm", "--network=none", "busybox", "echo", "well") == "well"
    assert spare.out("ps", "-aq") == ""


def test_without_privileges(spare: Instance) -> None:
    # The checkout may lie where others cannot look; reading is all that this capability gives.
    reader = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reader]
    for argv, code in ((["run", "--rm", "busybox", "true"], 125), (["ps"], 1), (["build", "/"], 1)):
        done = spare.inside(*user, *spare.argv(*argv)[2:], cwd="/")
        assert done.returncode == code, done
        assert done.stderr.startswith("vmm: ") and "root" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and "unexpected" not in done.stderr
    assert spare.inside(*user, *spare.argv("--help")[2:], cwd="/").returncode == 0
