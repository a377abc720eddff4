"""The builder from outside: steps, cache, failures, scopes, copying, hostile contexts."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import msgspec
import pytest

from tests.unit.build.conftest import GROUP, PASSWD, Workshop, tar_of
from vmm.engine.build import apply_changes
from vmm.engine.build_events import CacheUsed, ContainerStarted
from vmm.model.errors import BuildError, InvalidDocument, NotFound, UsageError, VmmError
from vmm.model.image import ContainerConfig


def write(context: Path, text: str, **files: str) -> None:
    (context / "Dockerfile").write_text(text)
    for name, content in files.items():
        (context / name).write_text(content)


def busybox(workshop: Workshop, context: Path) -> None:
    """Base image ``box``: the host's static busybox, with a few users."""
    binary = Path("/bin/busybox")
    if not binary.exists():
        pytest.skip("test data is not here")
    folder = context.parent / "box"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/busybox").write_bytes(binary.read_bytes())
    os.chmod(folder / "bin/busybox", 0o755)
    for applet in ("sh", "cat", "echo", "mkdir", "rm", "touch", "ln", "ls", "env", "id"):
        os.symlink("busybox", folder / "bin" / applet)
    (folder / "users.tar").write_bytes(
        tar_of({"etc/passwd": PASSWD, "etc/group": GROUP}).getvalue()
    )
    (folder / "Dockerfile").write_text(
        "FROM scratch\nCOPY bin /bin\nADD users.tar /\nRUN mkdir /tmp\n"
    )
    workshop.build(folder, tags=("box",))


def test_steps_and_cache_print_as_docker_does(workshop: Workshop, context: Path) -> None:
    busybox(workshop, context)
    write(context, 'FROM box\nCOPY a /a\nRUN cat /a; echo done\nCMD ["cat", "/a"]\n', a="one\n")
    first = workshop.build(context, tags=("app:1", "app"))
    lines = workshop.lines()
    box = workshop.images.resolve("box").id[7:19]
    ran = next(e.id for e in workshop.events if isinstance(e, ContainerStarted))[:12]
    assert lines[:3] == ["Step 1/4 : FROM box", f" ---> {box}", "Step 2/4 : COPY a /a"]
    assert lines[4] == "Step 3/4 : RUN cat /a; echo done"
    assert lines[5:9] == [
        f" ---> Running in {ran}", "one", "done", f" ---> Removed intermediate container {ran}"
    ]  # fmt: skip
    assert lines[-5:] == [
        'Step 4/4 : CMD ["cat", "/a"]',
        f" ---> {first.id[7:19]}",
        f"Successfully built {first.id[7:19]}",
        "Successfully tagged app:1",
        "Successfully tagged app:latest",
    ]
    again = workshop.build(context)
    assert again.id == first.id
    assert sum(isinstance(event, CacheUsed) for event in workshop.events) == 3
    assert workshop.lines().count(" ---> Using cache") == 3
    assert workshop.left() == []


def test_cache_follows_content_not_times(workshop: Workshop, context: Path) -> None:
    busybox(workshop, context)
    write(context, "FROM box\nCOPY a /a\nRUN cat /a\n", a="one")
    first = workshop.build(context)
    os.utime(context / "a", (1, 1))
    assert workshop.build(context).id == first.id
    (context / "a").write_text("two")
    assert workshop.build(context).id != first.id
    assert b"two" in workshop.log
    (context / "a").write_text("one")
    assert workshop.build(context).id == first.id
    os.chmod(context / "a", 0o600)
    assert workshop.build(context).id != first.id
    workshop.build(context, no_cache=True)
    assert not any(isinstance(event, CacheUsed) for event in workshop.events)


def test_cache_entry_without_its_layer_is_a_miss(workshop: Workshop, context: Path) -> None:
    write(context, "FROM scratch\nCOPY a /a\nLABEL x=1\n", a="one")
    image = workshop.build(context, tags=("gone",))
    workshop.images.remove("gone", force=True, in_use={})
    assert not workshop.layers.has(image.chain_ids[0])
    for path in (workshop.root / "build-cache").iterdir():
        if b"label" not in path.read_bytes():
            path.write_bytes(b"{broken")
    assert workshop.files(workshop.build(context))["a"].st_size == 3


def test_failing_run_stops_the_build(workshop: Workshop, context: Path) -> None:
    busybox(workshop, context)
    write(context, "FROM box\n\n# a note\nRUN touch /half; echo output; exit 3\nRUN touch /never\n")
    with pytest.raises(BuildError) as caught:
        workshop.build(context, tags=("half",))
    error = caught.value
    assert error.message == (
        "The command '/bin/sh -c touch /half; echo output; exit 3' returned a non-zero code: 3"
    )
    assert (error.line, error.step_code) == (4, 3)
    assert "line 4" in error.hint
    assert b"output\n" in workshop.log
    with pytest.raises(NotFound):
        workshop.images.resolve("half")
    assert workshop.left() == []
    write(context, "FROM box\nRUN ls /\n")
    workshop.build(context)
    assert b"half" not in workshop.log


def test_missing_base_says_how_to_get_it(workshop: Workshop, context: Path) -> None:
    write(context, "FROM nowhere:1\n")
    with pytest.raises(BuildError, match=r"nowhere") as caught:
        workshop.build(context)
    assert caught.value.line == 1
    assert "vmm image" in caught.value.hint


def test_args_and_environment(workshop: Workshop, context: Path) -> None:
    busybox(workshop, context)
    write(
        context,
        "ARG base=nothing\nFROM $base\nARG base\nARG a=1\nARG b\nENV b=env\n"
        "RUN echo $a $b $base ${http_proxy:-none}\n"
        'ENV c="$a and ${b:+set}" PATH=$PATH:/x\nLABEL l=$c\nEXPOSE 80 $a/udp\n',
    )
    given = {"base": "box", "a": "2", "b": "3", "odd": "x", "http_proxy": "p"}
    image = workshop.build(context, build_args=given)
    assert b"2 env box p\n" in workshop.log
    assert "[Warning] One or more build-args [odd] were not consumed" in workshop.lines()
    config = image.config.config
    assert config.env[0].endswith("/bin:/x")
    assert config.env[1:] == ["b=env", "c=2 and set"]
    assert config.labels == {"l": "2 and set"}
    assert sorted(config.exposed_ports) == ["2/udp", "80/tcp"]
    written = [entry.created_by for entry in image.config.history]
    assert "|2 a=2 base=box /bin/sh -c echo $a $b $base ${http_proxy:-none}" in written
    # The proxy is not part of the cache key; a declared argument is.
    workshop.build(context, build_args={**given, "http_proxy": "q"})
    assert not any(isinstance(event, ContainerStarted) for event in workshop.events)
    workshop.build(context, build_args={**given, "a": "4"})
    assert b"4 env box p\n" in workshop.log


def test_every_metadata_instruction(workshop: Workshop, context: Path) -> None:
    write(
        context,
        "FROM scratch\nMAINTAINER A B <a@b>\nCMD one\nENTRYPOINT [\"/e\"]\nUSER 1:2\n"
        "WORKDIR /a\nWORKDIR b/../c/\nVOLUME /v [\"/w\"]\nVOLUME [\"/x y\"]\nSTOPSIGNAL SIGINT\n"
        "SHELL [\"/s\", \"-c\"]\nCMD two\nHEALTHCHECK --interval=1m30s --retries=3 CMD x y\n"
        "EXPOSE 1-3/UDP\n",
    )  # fmt: skip
    image = workshop.build(context, labels={"q": "$x 'y'"})
    config = image.config.config
    assert image.config.author == "A B <a@b>"
    assert (config.entrypoint, config.cmd) == (["/e"], ["/s", "-c", "two"])
    assert (config.user, config.working_dir, config.stop_signal) == ("1:2", "/a/c", "SIGINT")
    assert set(config.volumes) == {"/v", "[/w]", "/x y"}
    assert config.healthcheck is not None
    assert config.healthcheck.interval == 90 * 10**9
    assert config.healthcheck.test == ["CMD-SHELL", "x y"]
    assert set(config.exposed_ports) == {"1/udp", "2/udp", "3/udp"}
    assert config.labels == {"q": "$x 'y'"}
    history = [entry.created_by for entry in image.config.history]
    assert '/bin/sh -c #(nop)  CMD ["/bin/sh" "-c" "one"]' in history
    assert "/bin/sh -c #(nop)  WORKDIR /a" in history
    assert '/s -c #(nop)  HEALTHCHECK &{["CMD-SHELL" "x y"] "1m30s" "0s" "0s" "0s" \'\\x03\'}' in (
        history
    )
    assert [entry.empty_layer for entry in image.config.history].count(False) == 2
    assert set(workshop.files(image)) == {"a", "a/c"}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("COPY ../x /", "forbidden path outside the build context: ../x"),
        ("COPY /../../x /", "forbidden path outside the build context"),
        ("COPY missing /", "file not found in build context or excluded"),
        ("COPY none* /", "no source files were specified"),
        ("COPY a b /c", "must be a directory and end with a /"),
        ("COPY --from=later a /", "later"),
        ("COPY --from=0 a /", "no such stage before"),
        ("COPY --chown=nobody a /", "no 'nobody' in /etc/passwd"),
        ("COPY --chmod=u+x a /", "octal digits"),
        ("COPY a a/b /x/", "a/b"),
        ("COPY [x /", r"syntax error in pattern|file not found"),
        ("COPY a /a\nCOPY a /a/b/c", "Not a directory|exists"),
        ("ENV x='a", "looking for matching single-quote"),
        ("EXPOSE 99999", "invalid port"),
        ("STOPSIGNAL SIGFOO", "Invalid signal"),
        ("ENV u=https://h/x\nADD $u /", "remote source is not supported"),
        ("USER ${x:?set it}", "set it"),
        ('COPY ["a\\u0000", "/x"]', "null byte"),
        ("COPY --from=none/such:1 a /", "none/such:1"),
        ("ADD a /\nCOPY " + "d/" * 3000 + " /", "name too long|not found"),
    ],
)
def test_faults_name_their_line(workshop: Workshop, context: Path, body: str, fault: str) -> None:
    write(context, f"FROM scratch\n{body}\n", a="1", b="2")
    with pytest.raises(VmmError, match=fault) as caught:
        workshop.build(context)
    assert isinstance(caught.value, BuildError)
    assert f"line {1 + len(body.splitlines())}" in caught.value.message
    assert workshop.left() == []


def test_bad_requests(workshop: Workshop, context: Path) -> None:
    with pytest.raises(UsageError, match="Dockerfile"):
        workshop.build(context)
    with pytest.raises(UsageError, match="context"):
        write(context, "FROM scratch\n")
        workshop.build(context / "no", dockerfile=str(context / "Dockerfile"))
    with pytest.raises(BuildError, match="No image was generated"):
        workshop.build(context)
    with pytest.raises(VmmError, match=r"reference|tag"):
        workshop.build(context, tags=("UPPER",))
    (context / "Dockerfile").write_bytes(b"FROM scratch\nLABEL a=\xff\n")
    with pytest.raises(InvalidDocument, match="line 2: is not UTF-8"):
        workshop.build(context)
    os.unlink(context / "Dockerfile")
    os.mkfifo(context / "Dockerfile")
    with pytest.raises(UsageError, match="not a regular file"):
        workshop.build(context)


def test_links_never_lead_out(workshop: Workshop, context: Path) -> None:
    secret = context.parent / "secret"
    secret.write_text("host")
    (context / "d").mkdir()
    os.symlink(secret, context / "d/link")
    os.symlink("/", context / "all")
    os.symlink(secret, context / "file")
    write(context, "FROM scratch\nCOPY d /d\n")
    image = workshop.build(context)
    assert stat.S_ISLNK(workshop.files(image)["d/link"].st_mode)
    write(context, "FROM scratch\nCOPY file /x\n")
    with pytest.raises(BuildError, match="file not found"):
        workshop.build(context)
    write(context, f"FROM scratch\nCOPY all{secret} /x\n")
    with pytest.raises(BuildError, match="file not found"):
        workshop.build(context)


def test_links_of_the_image_stay_inside(workshop: Workshop, context: Path) -> None:
    victim = context.parent / "victim"
    victim.mkdir()
    (context / "d").mkdir()
    for name in ("out", "d/up"):
        os.symlink(victim if name == "out" else "../../../../../.." + str(victim), context / name)
    os.mkdir(context / "e")
    os.symlink(victim, context / "e/out")
    write(
        context,
        "FROM scratch\nCOPY e /\nCOPY d /d\nCOPY a /out/\nCOPY a /d/up/b\nWORKDIR /out/w\n",
        a="1",
    )
    image = workshop.build(context)
    assert os.listdir(victim) == []
    inside = str(victim).lstrip("/")
    assert {f"{inside}/a", f"{inside}/b", f"{inside}/w"} <= set(workshop.files(image))


def test_hostile_archive_stays_inside(workshop: Workshop, context: Path) -> None:
    victim = context.parent / "victim"
    victim.mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("esc")
        link.type, link.linkname = tarfile.SYMTYPE, str(victim)
        archive.addfile(link)
        for name in ("esc/inside", "../" * 9 + str(victim) + "/dots"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    (context / "a.tar").write_bytes(out.getvalue())
    write(context, "FROM scratch\nADD a.tar /in/\n")
    try:
        workshop.build(context)
    except BuildError as error:
        assert error.line == 2
    assert os.listdir(victim) == []
    assert workshop.left() == []


def test_copy_keeps_modes_times_and_kinds(workshop: Workshop, context: Path) -> None:
    (context / "d").mkdir(mode=0o750)
    write(context, "FROM scratch\nCOPY d/ /to\nCOPY --chown=5:6 --chmod=0711 f /g\n", f="x")
    (context / "d/sub").mkdir(mode=0o700)
    (context / "d/sub/s").write_text("s")
    os.chmod(context / "d/sub/s", 0o4755)
    os.mkfifo(context / "d/fifo")
    os.utime(context / "d/sub/s", (5, 5))
    os.utime(context / "d/sub", (7, 7))
    files = workshop.files(workshop.build(context))
    assert stat.S_IMODE(files["to/sub/s"].st_mode) == 0o4755
    assert (files["to/sub/s"].st_mtime, files["to/sub"].st_mtime) == (5, 7)
    assert stat.S_IMODE(files["to/sub"].st_mode) == 0o700
    assert stat.S_ISFIFO(files["to/fifo"].st_mode)
    assert (files["g"].st_uid, files["g"].st_gid) == (5, 6)
    assert stat.S_IMODE(files["g"].st_mode) == 0o711


def test_dockerignore_of_its_own_wins(workshop: Workshop, context: Path) -> None:
    write(context, "FROM scratch\nCOPY . /\n", a="1", b="2")
    (context / ".dockerignore").write_text("*\n!a\n")
    assert set(workshop.files(workshop.build(context))) == {"a"}
    (context / "Dockerfile.dockerignore").write_text("*\n!b\n")
    assert set(workshop.files(workshop.build(context))) == {"b"}
    (context / "Dockerfile.dockerignore").write_text("[\n")
    with pytest.raises(InvalidDocument):
        workshop.build(context)


def test_stages_and_image_as_origin(workshop: Workshop, context: Path) -> None:
    busybox(workshop, context)
    write(
        context,
        "FROM box AS one\nRUN echo made > /made; mkdir /own; ln -s made /own/l\n"
        "FROM scratch AS two\nCOPY --from=ONE /made /x\n"
        "FROM two\nCOPY --from=0 /own /own\nCOPY --from=box /etc/passwd /p\n",
    )
    image = workshop.build(context)
    assert set(workshop.files(image)) == {"x", "own", "own/l", "p"}
    assert workshop.read(image, "x") == "made\n"


def test_from_only_is_the_same_image(workshop: Workshop, context: Path) -> None:
    write(context, "FROM scratch\nLABEL a=b\n")
    first = workshop.build(context, tags=("base",))
    write(context, "FROM base\n")
    assert workshop.build(context, tags=("other",)).id == first.id
    assert workshop.images.resolve("other").id == first.id


def test_onbuild_of_a_base_is_refused(workshop: Workshop, context: Path) -> None:
    write(context, "FROM scratch\nLABEL a=b\n")
    image = workshop.build(context, tags=("base",))
    config = msgspec.structs.replace(image.config.config, on_build=["RUN x"])
    workshop.images.commit(msgspec.structs.replace(image.config, config=config), [], ["trig"])
    write(context, "FROM trig\nLABEL c=d\n")
    with pytest.raises(BuildError, match="ONBUILD"):
        workshop.build(context)


def test_odd_names_and_texts(workshop: Workshop, context: Path) -> None:
    (context / "d").mkdir()
    for name in (b"d/\xff\xfe", b"d/a b", b"d/*", "d/é".encode(), b"d/new\nline"):
        (context / os.fsdecode(name)).write_text("x")
    write(context, 'FROM scratch\nCOPY d/* /to/\nCMD ["\\ud800", "é"]\n')
    image = workshop.build(context)
    names = {os.fsencode(path) for path in workshop.files(image)}
    assert names == {
        b"to", b"to/\xff\xfe", b"to/a b", b"to/*", "to/é".encode(), b"to/new\nline"
    }  # fmt: skip
    assert image.config.config.cmd == ["\ufffd", "é"]
    assert workshop.build(context).id == image.id


def test_changes_of_an_import() -> None:
    changes = ["ENV a=1", "CMD x $a", "WORKDIR /w", "EXPOSE 80", 'ENTRYPOINT ["/e"]', "LABEL b=$a"]
    config = apply_changes(ContainerConfig(), changes)
    assert (config.env, config.entrypoint, config.working_dir) == (["a=1"], ["/e"], "/w")
    assert (config.cmd, config.labels) == (["/bin/sh", "-c", "x $a"], {"b": "1"})
    for bad in ("RUN x", "COPY a b", "FROM x", "NONSENSE", "ENV a='"):
        with pytest.raises(VmmError):
            apply_changes(ContainerConfig(), [bad])


KILLED = """
import sys
from pathlib import Path
from tests.unit.build.conftest import Workshop
Workshop(Path(sys.argv[1])).build(Path(sys.argv[2]), tags=("killed",))
"""


def test_kill_leaves_a_state_the_next_build_understands(workshop: Workshop, context: Path) -> None:
    from vmm.ports.files import locked

    busybox(workshop, context)
    write(context, "FROM box\nCOPY a /a\nRUN touch /b; while :; do :; done\n", a="1")
    argv = [sys.executable, "-c", KILLED, str(workshop.root), str(context)]
    child = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not list((workshop.root / "builds").glob("*/3/upper/b")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    (left,) = workshop.left()
    with locked(workshop.root / "builds" / left / "lock", timeout=5):
        pass
    write(context, "FROM box\nCOPY a /a\nRUN ls /\n", a="1")
    workshop.build(context, tags=("killed",))
    assert workshop.lines().count(" ---> Using cache") == 1
    assert b"\nb\n" not in workshop.log
