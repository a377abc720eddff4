"""The workload's root: layers, mounts, masks, and images that try to lead out of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.unit.native.launching import Case
from vmm.model.launch import op


def test_copy_on_write(case: Case) -> None:
    assert case.sh("echo new >/etc/hosts; echo x >/made; cat /etc/hosts").out == "new\n"
    assert (case.layer / "etc/hosts").read_text() == "from the image\n"
    assert (case.base / "upper/made").read_text() == "x\n"


def test_127_layers(case: Case) -> None:
    for number in range(126):
        name = f"{number:026d}"
        (case.base / "layers" / name / "from").mkdir(parents=True)
        (case.base / "layers" / name / "top").write_text(str(number))
        (case.base / "layers" / name / "from" / str(number)).touch()
        case.layers.insert(0, name)
    assert case.sh("cat /top; echo; ls /from | wc -l").out.split() == ["125", "126"]


def test_too_many_layers_is_an_error(case: Case) -> None:
    case.layers = ["x" * 200] * 30
    result = case.run("true")
    assert result.code == 125
    assert "bytes of mount options" in result.err


def test_layer_names_need_no_care(case: Case) -> None:
    (case.base / "layers/base").rename(case.base / "layers/a:b,c\\d")
    case.layers = ["a:b,c\\d"]
    assert case.run("true").code == 0


def test_nothing_of_the_host_is_visible(case: Case) -> None:
    mounts = case.run("cat", "/proc/self/mountinfo").out
    assert str(case.base) not in mounts
    assert [line.split()[4] for line in mounts.splitlines()] == [
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/mqueue",
        "/sys",
    ]


def test_mounts_do_not_reach_the_host(case: Case) -> None:
    before = _overlays()
    case.run("true")
    assert case.run("nope").code == 127
    assert _overlays() == before
    assert str(case.base) not in Path("/proc/self/mountinfo").read_text()


def _overlays() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if " - overlay " in line]


def test_volatile_root_starts_again(case: Case) -> None:
    case.volatile = 1
    assert [case.run("true", options=("-n", "2")).code for _ in range(2)] == [0, 0]
    assert "volatile" in case.run("cat", "/proc/mounts").out


def test_read_only_roots(case: Case) -> None:
    case.after_pivot.append(op("root.readonly"))
    result = case.sh("echo x >/x; echo ok >/dev/null")
    assert "Read-only file system" in result.err
    case.after_pivot.clear()
    for name in ("proc", "dev", "sys"):
        (case.layer / name).mkdir()
    case.root = lambda: [  # type: ignore[method-assign]
        op(
            "root.overlay",
            str(case.base / "layers"),
            "",
            "",
            0,
            "base",
            "../upper",
        )
    ]
    assert "Read-only file system" in case.sh("echo x >/x").err


def test_directory_as_root(case: Case) -> None:
    case.root = lambda: [op("root.directory", str(case.layer))]  # type: ignore[method-assign]
    assert case.sh("echo in >/made; cat /made").out == "in\n"
    assert (case.layer / "made").read_text() == "in\n"


def test_binds(case: Case) -> None:
    data = case.base / "data"
    (data / "sub").mkdir(parents=True)
    (data / "file").write_text("host\n")
    case.before_pivot += [
        op("mount.bind", str(data), "/new/data", "rec,rprivate"),
        op("mount.bind", str(data), "/ro", "rec,ro,nosuid,nodev"),
        op("mount.bind", str(data / "file"), "/etc/hosts", ""),
        op("mount.bind", str(data / "file"), "/made/file", "ro"),
    ]
    result = case.sh(
        "cat /etc/hosts /made/file; echo w >/new/data/w; echo w >/ro/w; echo w >/made/file"
    )
    assert result.out == "host\nhost\n"
    assert result.err.count("Read-only file system") == 2
    assert (data / "w").read_text() == "w\n"


def test_bind_errors(case: Case) -> None:
    case.before_pivot = [op("mount.bind", "/nowhere/at/all", "/x", "")]
    result = case.run("true")
    assert result.code == 125
    assert "mount.bind /nowhere/at/all /x: mount source /nowhere/at/all: No such file" in result.err
    case.before_pivot = [op("mount.bind", "/etc", "/bin/busybox", "")]
    assert "in the image is no directory" in case.run("true").err
    case.before_pivot = [op("mount.bind", "/etc", "/x", "sideways")]
    assert 'unknown mount flag "sideways"' in case.run("true").err


@pytest.mark.parametrize("kind", ["fifo", "dangling", "absolute", "device", "sparse"])
def test_hosts_file_of_a_hostile_image(case: Case, kind: str) -> None:
    mine = case.base / "hosts"
    mine.write_text("mine\n")
    outside = case.base / "outside"
    path = case.layer / "etc/hosts"
    path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("../run/made/here")
        case "absolute":
            path.symlink_to(f"../../../../..{outside}")
        case "device":
            os.mknod(path, 0o20666, os.makedev(1, 8))
        case _:
            path.touch()
            os.truncate(path, 1 << 30)
    case.before_pivot.append(op("mount.bind", str(mine), "/etc/hosts", "ro"))
    result = case.run("cat", "/etc/hosts", timeout=5)
    assert (result.code, result.out) == (0, "mine\n")
    assert not outside.exists()


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("target", ["/etc", "/proc/self/fd/5", "../../../..", "loop"])
def test_kernel_trees_are_not_redirected(case: Case, name: str, target: str) -> None:
    (case.layer / name).symlink_to(name if target == "loop" else target)
    result = case.run("true", timeout=5)
    assert result.code == 125
    assert "symbolic link" in result.err


@pytest.mark.parametrize("kind", ["fifo", "file"])
def test_kernel_tree_is_no_directory(case: Case, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(case.layer / "proc")
    else:
        (case.layer / "proc").touch()
    result = case.run("true", timeout=5)
    assert result.code == 125
    assert "mount.fs proc proc" in result.err


@pytest.mark.parametrize("target", ["/etc", "/nowhere/deep", "../../../../tmp"])
def test_redirected_dev_stays_inside(case: Case, target: str) -> None:
    before = set(os.listdir("/tmp")) | set(os.listdir("/etc"))
    (case.layer / "dev").symlink_to(target)
    assert case.sh("echo x >/dev/null && ls /dev").code in (0, 125)
    assert set(os.listdir("/tmp")) | set(os.listdir("/etc")) == before
    assert os.path.getmtime("/dev/null")


def test_masks_and_read_only_paths(case: Case) -> None:
    (case.layer / "secret").mkdir()
    (case.layer / "secret/key").write_text("key")
    case.after_pivot += [
        op("mount.proc-mask", p)
        for p in (
            "/proc/timer_list",
            "/proc/keys",
            "/proc/acpi",
            "/proc/missing",
            "/sys/firmware",
            "/secret",
        )
    ]
    case.after_pivot += [
        op("mount.readonly", p) for p in ("/proc/sys", "/proc/bus", "/proc/none", "/etc")
    ]
    result = case.sh(
        "cat /proc/timer_list /proc/keys; ls /secret /sys/firmware; "
        "echo 1 >/proc/sys/kernel/domainname; "
        "echo x >/etc/hosts; touch /secret/x; stat -c %t:%T /proc/timer_list"
    )
    assert result.out == "/secret:\n\n/sys/firmware:\n1:3\n"
    assert result.err.count("Read-only file system") == 3


def test_masking_with_a_false_null_device(case: Case) -> None:
    case.mounts = lambda: [op("mount.fs", "proc", "proc", "/proc", "", "")]  # type: ignore[method-assign]
    (case.layer / "dev").mkdir()
    (case.layer / "dev/null").write_text("not null")
    case.after_pivot.append(op("mount.proc-mask", "/proc/timer_list"))
    result = case.run("true")
    assert result.code == 125
    assert "/dev/null is not the null device" in result.err
    (case.layer / "dev/null").unlink()
    (case.layer / "dev/null").symlink_to("/proc/sysrq-trigger")
    assert case.run("true").code == 125


def test_names_and_sysctls(case: Case) -> None:
    case.before_pivot += [
        op("hostname", "box"),
        op("domainname", "example"),
        op("sysctl", "net.ipv4.ip_unprivileged_port_start", "0"),
        op("sysctl", "kernel/msgmax", "4096"),
    ]
    result = case.sh(
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax "
        "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    )
    assert result.out.split() == ["box", "example", "4096", "0"]


@pytest.mark.parametrize(
    "key", ["../../etc/hosts", "kernel.nothing", "..", "", "kernel/../../self/attr/current"]
)
def test_bad_sysctl(case: Case, key: str) -> None:
    case.before_pivot.append(op("sysctl", key, "1"))
    result = case.run("true")
    assert result.code == 125
    assert result.err.startswith(f"sysctl {key}")


def test_sysctl_writes_only_into_procfs(case: Case) -> None:
    fake = case.layer / "proc/sys/kernel"
    fake.mkdir(parents=True)
    (fake / "msgmax").touch()
    case.mounts = list  # type: ignore[method-assign]
    case.before_pivot.append(op("sysctl", "kernel.msgmax", "4096"))
    assert "/proc is not the process file system" in case.run("true").err


def test_all_nodes_of_the_machine(case: Case) -> None:
    """With owners and modes, below directories too; what exists stays, what is to be skipped is."""
    ours = {
        str(path): f"{os.major(info.st_rdev):x} {os.minor(info.st_rdev):x} "
        f"{info.st_uid}:{info.st_gid} {stat.S_IMODE(info.st_mode):o}"
        for path in Path("/dev").rglob("*")
        if not path.is_relative_to("/dev/pts") and not path.name.startswith(("zer", "console"))
        if stat.S_ISCHR((info := path.lstat()).st_mode) or stat.S_ISBLK(info.st_mode)
    }
    assert len(ours) > 5
    case.mounts = list  # type: ignore[method-assign]
    case.before_pivot += [
        op("mount.fs", "tmpfs", "tmpfs", "/dev", "nosuid", "mode=755"),
        op("dev.node", "/dev/null", "c", 1, 3, "600", 7, 8),
        op("dev.all", "zer", "console"),
    ]
    script = "find /dev -type c -o -type b | xargs stat -c '%n=%t %T %u:%g %a'"
    found = dict(line.split("=") for line in case.sh(script).out.splitlines())
    assert found.pop("/dev/null") == "1 3 7:8 600"
    del ours["/dev/null"]
    assert found == ours


def test_directories_nodes_and_links(case: Case) -> None:
    case.before_pivot += [
        op("mkdir", "/a/b/c", "1770", 5, 6),
        op("mkdir", "/etc", "700", 5, 6),
        op("dev.node", "/dev/sub/disk", "b", 7, 200, "600", 0, 6),
        op("symlink", "/proc/self/fd", "/dev/fd"),
        op("symlink", "/proc/self/fd", "/dev/fd"),
    ]
    result = case.sh(
        "stat -c '%a %u %g' /a /a/b/c /etc /dev/sub/disk; stat -c %t:%T /dev/sub/disk; "
        "readlink /dev/fd"
    )
    assert result.out.split("\n") == [
        "755 0 0",
        "1770 5 6",
        "755 0 0",
        "600 0 6",
        "7:c8",
        "/proc/self/fd",
        "",
    ]
    case.before_pivot.append(op("symlink", "/else", "/dev/fd"))
    assert "File exists" in case.run("true").err


def test_cgroup_and_option_errors_say_what(case: Case) -> None:
    case.before_pivot = [op("mount.fs", "tmpfs", "tmpfs", "/x", "", "size=banana")]
    result = case.run("true")
    assert result.code == 125
    assert 'mount.fs tmpfs tmpfs: option "size"' in result.err
    case.before_pivot = [op("mount.fs", "nosuchfs", "x", "/x", "", "")]
    assert "file system nosuchfs: No such device" in case.run("true").err
