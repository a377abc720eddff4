"""Images and shared volumes made to break out: the host's files stay as they were."""

from __future__ import annotations

import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.integration.isolation_lab import QUIET, Lab, special

GIB = 1 << 30
#: Longest that a hostile image may take to start or be refused (seconds).
SOON = 15


def _run(lab: Lab, image: str, *argv: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    begin = time.monotonic()
    command = ["run", "--rm", *QUIET, *options, image, *argv]
    done = lab.vmm.run(*command, check=False, timeout=SOON)
    assert time.monotonic() - begin < SOON
    assert "unexpected" not in done.stderr and "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_a_kernel_tree_behind_a_link_is_refused(lab: Lab, name: str) -> None:
    """CVE-2019-19921, CVE-2023-27561: /proc or /sys as a symbolic link."""
    image = lab.make(f"linked-{name}", {name: "->/tmp/elsewhere", "tmp/elsewhere/x": "x"})
    code, out, err = _run(lab, image, "true")
    assert (code, out) == (125, "")
    assert f"/{name}" in err and "symbolic link" in err


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "etc"])
def test_a_file_in_place_of_a_directory_is_refused(lab: Lab, name: str) -> None:
    image = lab.make(f"fifo-{name}", {name: special(tarfile.FIFOTYPE)})
    code, _, err = _run(lab, image, "true")
    assert code == 125 and f"/{name}" in err


def test_links_to_the_hosts_places_end_inside(lab: Lab) -> None:
    """An absolute link, and one with as many ``..`` as it takes, that name a host's directory."""
    up = "../" * 12
    image = lab.make("outward", {
        "etc": f"->{up}{str(lab.canary).lstrip('/')}",
        "data": f"->{lab.canary}",
    })  # fmt: skip
    script = "id >/dev/null && cat /etc/hostname && echo inside > /data/made"
    code, out, err = _run(lab, image, "sh", "-c", script, options=("--tmpfs", "/data", "-h", "x"))
    assert (code, out) == (0, "x\n"), err
    assert lab.unharmed()
    image = lab.make("outward-dev", {"dev": f"->{up}{str(lab.canary).lstrip('/')}"})
    code, _, err = _run(lab, image, "true")
    assert code == 125 and "/dev/null" in err
    assert lab.unharmed()


def test_files_of_etc_and_dev_that_are_not_what_they_should_be(lab: Lab) -> None:
    image = lab.make("odd", {
        "etc/hosts": special(tarfile.FIFOTYPE),
        "etc/hostname": f"->{lab.canary}/hostname",
        "etc/resolv.conf": special(tarfile.CHRTYPE, 1, 5),
        "dev/null": f"->{lab.canary}/null",
        "dev/console": f"->{lab.canary}/null",
        "dev/shm": f"->{lab.canary}",
        "dev/ptmx": "plain",
    })  # fmt: skip
    script = "echo x >/dev/null; echo x >/dev/shm/y; cat /etc/hosts; cat /etc/hostname"
    code, out, err = _run(lab, image, "sh", "-c", script, options=("-h", "named", "-t"))
    assert code == 0 and "127.0.0.1" in out and "named" in out, err
    assert lab.unharmed()


@pytest.mark.parametrize(
    "passwd",
    [
        special(tarfile.FIFOTYPE),
        "->/proc/kmsg",
        "->../../../../../../etc/passwd",
        special(tarfile.BLKTYPE, 254, 0),
    ],
    ids=["fifo", "kmsg", "host", "disk"],
)
def test_a_passwd_file_that_is_none(lab: Lab, passwd: str | tarfile.TarInfo) -> None:
    """A name is not found there, a number needs none; nothing hangs, and the host is not asked."""
    image = lab.make("users", {"etc/passwd": passwd, "etc/group": passwd})
    code, _, err = _run(lab, image, "true", options=("-u", "daemon"))
    assert code in (125, 126) and "unable to find user daemon" in err
    code, out, err = _run(lab, image, "grep", "Uid", "/proc/self/status", options=("-u", "7"))
    assert out.split()[1:] == ["7"] * 4, err


def test_a_passwd_file_replaced_at_run_time(lab: Lab) -> None:
    """A device node made inside would be opened with the host's rights by an exec."""
    lab.start("swapped", "rm -f /etc/passwd; mknod /etc/passwd c 1 11; sleep 100")
    makers = (
        "true",
        "mknod /etc/new p",
        "mknod /etc/new c 1 5",
        "ln -s /proc/kmsg /etc/new",
        "ln -s /proc/self/environ /etc/new",
        "truncate -s 1G /etc/new",
    )
    for make in makers:
        script = f"{make}; [ ! -e /etc/new ] && [ ! -h /etc/new ] || mv /etc/new /etc/passwd"
        lab.vmm.run("exec", "-u", "0", "swapped", "sh", "-c", script, check=False, timeout=SOON)
        if make.startswith("truncate"):
            break
        done = lab.vmm.run("exec", "-u", "daemon", "swapped", "id", check=False, timeout=SOON)
        assert done.returncode != 0 and "unable to find user daemon" in done.stderr, (make, done)
    done = lab.vmm.run("exec", "-u", "daemon", "swapped", "id", check=False, timeout=SOON)
    assert done.returncode != 0 and "/etc/passwd" in done.stderr, done


def test_a_sparse_passwd_file_in_an_image(lab: Lab) -> None:
    path = lab.directory / "sparse"
    with path.open("wb") as file:
        file.truncate(GIB)
    tar = lab.directory / "sparse.tar"
    argv = ["tar", "-S", "-C", str(lab.directory), "--transform=s,^,etc/,", "-cf", str(tar)]
    (lab.directory / "passwd").symlink_to("sparse")
    subprocess.run([*argv, "--transform=s,sparse,passwd,", "sparse"], check=True)
    lab.vmm.run("image", "import", str(tar), "sparse")
    lab.images.append("sparse")
    code, _, err = _run(lab, "sparse", "/x", options=("-u", "daemon"))
    assert code in (125, 126) and "/etc/passwd" in err


EVIL = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) { close(creat("/tmp/loaded", 0644)); }
"""


def test_no_code_of_the_image_runs_with_our_rights(lab: Lab) -> None:
    """CVE-2019-14271: NSS libraries, and what Python imports by itself, wherever it would look."""
    library = lab.directory / "evil.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=EVIL.encode(), check=True)
    code = b"open('/tmp/loaded', 'w').close()\n"
    tree: dict[str, str | bytes | tarfile.TarInfo] = {
        "etc/nsswitch.conf": "passwd: evil files\ngroup: evil files\nhosts: evil files\n",
        "etc/ld.so.preload": "/lib/evil.so\n",
        "etc/passwd": "root:x:0:0::/root:/bin/sh\nme:x:5:6::/me:/bin/sh\n",
        "etc/group": "root:x:0:\nmine:x:6:me\nmore:x:9:me\n",
        "lib/evil.so": library.read_bytes(),
        "usr/lib/python3/dist-packages/usercustomize.py": code,
        "usr/lib/python3.11/sitecustomize.py": code,
        "usr/lib/python3.11/encodings/idna.py": code,
        "encodings/__init__.py": code,
    }
    for place in ("lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):
        for name in ("evil", "files", "dns", "compat", "systemd"):
            tree[f"{place}/libnss_{name}.so.2"] = library.read_bytes()
    image = lab.make("evil", tree)
    marks = (Path("/tmp/loaded"), Path("/lib/evil.so"))
    assert not any(mark.exists() for mark in marks)
    lab.start("evil", "sleep 100", "-u", "me", image=image)
    assert lab.vmm.out("exec", "evil", "id").startswith("uid=5(me) gid=6(mine) groups=")
    assert lab.vmm.out("exec", "-u", "me:more", "evil", "id", "-g") == "9"
    assert lab.vmm.out("exec", "-u", "0", "evil", "ls", "/tmp") == ""
    assert not any(mark.exists() for mark in marks)
    lab.vmm.run("rm", "-f", "evil")


def test_a_volume_is_not_filled_from_the_host(lab: Lab) -> None:
    """What an image has at a volume's path is copied into it: never through a link of the image."""
    image = lab.make("filler", {
        "absolute": f"->{lab.canary}",
        "above": "->" + "../" * 12 + str(lab.canary).lstrip("/"),
        "magic": "->/proc/self/root/etc",
        "within/link": f"->{lab.canary}/secret",
    })  # fmt: skip
    options = [o for p in ("absolute", "above", "within") for o in ("-v", f"vol-{p}:/{p}")]
    code, out, err = _run(
        lab, image, "sh", "-c", "cat /absolute/* /above/* /within/link", options=(*options,)
    )
    assert code != 0 and "host" not in out.replace("host's", "host"), err
    for place in ("absolute", "above", "within"):
        data = lab.vmm.root / "volumes" / f"vol-{place}" / "_data"
        assert [p.name for p in data.iterdir() if p.name in ("secret", "hosts")] == []
    code, _, err = _run(lab, image, "ls", "/magic", options=("-v", "vol-magic:/magic"))
    data = lab.vmm.root / "volumes" / "vol-magic" / "_data"
    assert not data.exists() or not (data / "shadow").exists()
    assert lab.unharmed()
    lab.vmm.run("volume", "prune", "-af")


def test_races_over_a_shared_volume(lab: Lab) -> None:
    """CVE-2021-30465: a neighbour swaps a directory with a link out while mounts are placed."""
    made = f"/race/a{lab.canary}"
    away = f"ln -s / /race/b; mkdir -p {made} /race/a/tmp; cp /bin/busybox /race/a/tmp/x"
    lab.start("racer", f"{away}; /probe swap /race/a /race/b", "-v", "race:/race")
    outcomes = set()
    never = Path(f"/tmp/vmm-never-{lab.vmm.id}")
    for turn in range(60):
        if turn >= 8 and 0 in outcomes:
            break
        target = f"/race/a{lab.canary}"
        options = ["-v", "race:/race", "--tmpfs", target, "-w", f"/race/a{never}"]
        options += ["-v", f"{lab.probe}:{target}/secret"] if turn % 2 else []
        code, _, err = _run(lab, "busybox", "touch", f"{target}/hosts", options=tuple(options))
        outcomes.add(code)
        assert lab.unharmed() and not never.exists(), err
    assert 0 in outcomes, "no start at all succeeded"
    lab.vmm.run("rm", "-f", "racer")
    lab.vmm.run("volume", "rm", "race")
    assert lab.unharmed()


def test_a_mount_is_not_led_into_procfs(lab: Lab) -> None:
    """CVE-2019-16884, CVE-2025-52881: a mount over /proc through a link would undo its masks."""
    places = ("/proc", "/proc/self", "/proc/sys", "/proc/1/attr")
    image = lab.make("into", {f"data{i}": f"->{place}" for i, place in enumerate(places)})
    for number in range(len(places)):
        code, _, err = _run(lab, image, "true", options=("--tmpfs", f"/data{number}"))
        assert code == 125 and f"/data{number}" in err and "/proc" in err


def test_the_null_device_and_masks_cannot_be_replaced_by_an_image_or_mount(lab: Lab) -> None:
    """CVE-2025-31133: what masks is our own null device, also when /dev is the user's."""
    fake = lab.directory / "dev"
    fake.mkdir()
    (fake / "null").write_text("visible\n")
    argv = ("cat", "/proc/interrupts", "/proc/keys")
    code, out, err = _run(lab, "busybox", *argv, options=("-v", f"{fake}:/dev"))
    assert code == 125 and "null" in err and out == ""
    assert (fake / "null").read_text() == "visible\n"
    code, out, _ = _run(lab, "busybox", *argv)
    assert (code, out) == (0, "")
