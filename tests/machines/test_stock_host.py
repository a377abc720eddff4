"""vmm on a stock host: KVM, cgroup2 alone, nftables, no systemd; one boot of an emulated machine.

The guests in it run by hardware virtualisation, which QEMU emulates for the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.boots import Boot

REPO = Path(__file__).parents[2]
#: Seconds for all of it on a loaded machine; a quiet one takes a third.
DEADLINE = 900

pytestmark = pytest.mark.timeout(DEADLINE + 60)

#: ``vmm`` as a user calls it, and what is asked for often. $SHARED/kernels is a store's.
PRELUDE = f"""
cd {REPO}
vmm() {{ "$PYTHON" -m vmm --root "$SCRATCH/root" "$@"; }}
await() {{ for try in $(seq 100); do "$@" && return; sleep 0.2; done; false; }}
page() {{ wget -q -T 3 -t 1 -O - "http://$1/"; }}
"""
SCRIPTS = {
    "set up": """
        mkdir -m 711 "$SCRATCH/root"
        cp -a "$SHARED/kernels" "$SCRATCH/root/kernels"
        vmm system libvirt start && vmm image bootstrap busybox
    """,
    "backends": "vmm backends",
    "first": """
        vmm run --rm --backend vm --network none busybox sh -c '
            cat /sys/devices/system/clocksource/clocksource0/current_clocksource
            cat /proc/mounts; echo said >&2; exit 7'
        echo "code $?"
    """,
    "emulated": """
        VMM_ACCEL=tcg vmm create --backend vm --network none --name emulated busybox true
        vmm inspect --format '{{.Backend}}' emulated
        vmm rm emulated
    """,
    "serve": """
        mkdir "$SCRATCH/pages"; echo from the host >"$SCRATCH/pages/index.html"
        vmm run -d --name web --backend kvm -m 128m --cpus 0.5 -p 8080:80 \\
            -v "$SCRATCH/pages:/www:ro" -v kept:/kept busybox httpd -f -p 80 -h /www
        await page 127.0.0.1:8080
        vmm run --rm busybox wget -q -O - http://web/
    """,
    "look": """
        virsh -c qemu:///system list --name | grep vmm- >"$SCRATCH/domain"
        virsh -c qemu:///system dumpxml "$(cat "$SCRATCH/domain")" | grep -e '<domain' -e quota
        vmm exec web sh -c 'touch /www/x; nproc; echo kept >/kept/file'
        vmm stats --no-stream --format '{{.Name}} {{.PIDs}} {{.MemUsage}}' web
        vmm ps --format '{{.Names}} {{.Status}} {{.Ports}}'
    """,
    "pause": """
        vmm pause web; virsh -c qemu:///system domstate "$(cat "$SCRATCH/domain")"
        vmm unpause web; page 127.0.0.1:8080
    """,
    "stop": """
        vmm stop -t 5 web; vmm inspect --format '{{.State.ExitCode}}' web; vmm rm web
        vmm run --rm -v kept:/kept busybox cat /kept/file
        virsh -c qemu:///system list --all --name; vmm system check
    """,
    "container": """
        vmm run -d --name box --memory 32m --cpus 0.5 --cpuset-cpus 1 --pids-limit 20 \\
            -p 8081:80 busybox sh -c 'echo from the box >/index.html; exec httpd -f -p 80 -h /'
        await page 127.0.0.1:8081
        cd /sys/fs/cgroup/vmm-*/*/ && tail -n +1 memory.max cpu.max cpuset.cpus pids.max
        cd - >/dev/null
        vmm pause box; cat /sys/fs/cgroup/vmm-*/*/cgroup.freeze; vmm unpause box
        vmm update --memory 48m box; cat /sys/fs/cgroup/vmm-*/*/memory.max
        vmm exec box cat /proc/self/cgroup
        vmm rm -f box
        vmm run --memory 16m --name greedy busybox tail /dev/zero; echo "code $?"
        vmm inspect --format '{{.State.OOMKilled}}' greedy; vmm rm greedy
    """,
    "left": """
        vmm system teardown; ip -o link; nft list tables; find /sys/fs/cgroup -name 'vmm*'
        grep -c vmm /proc/self/mountinfo; ls /run/vmm/*
    """,
}


@pytest.fixture(scope="module")
def boot() -> Iterator[Boot]:
    """The machine's one life; the kernel is the one that guests boot too."""
    directory = Path(tempfile.mkdtemp(prefix="vmm-machine-", dir="/var/tmp"))
    try:
        store = directory / "store"
        fetch = [sys.executable, "-m", "vmm", "--root", str(store), "kernel", "fetch"]
        subprocess.run(fetch, check=True, capture_output=True, timeout=300)
        (directory / "shared").mkdir()
        shutil.copytree(store / "kernels", directory / "shared/kernels")
        kernel = next((store / "kernels").glob("*/modules")).parent
        scripts = {name: PRELUDE + text for name, text in SCRIPTS.items()}
        yield machine.run(scripts, directory, kernel, patience=240, timeout=DEADLINE)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def out(boot: Boot, name: str) -> str:
    result = boot.results[name]
    assert result.code == 0, f"{name}: {result}"
    return result.out


def test_kvm_is_found_and_chosen(boot: Boot) -> None:
    out(boot, "set up")
    rows = [line.split(maxsplit=3) for line in out(boot, "backends").splitlines()]
    found = {row[0]: row for row in rows if row[0] == row[1]}
    assert found["kvm"][2:] == ["yes", "the processor's virtualisation"]
    assert found["qemu"][2] == found["container"][2] == "yes"
    first = boot.results["first"]
    assert first.err.splitlines() == [
        "vmm: backend kvm: kvm: the processor's virtualisation",
        "said",
    ]
    clock, *_, code = first.out.splitlines()
    assert (clock, code) == ("kvm-clock", "code 7")


def test_an_override_emulates_all_the_same(boot: Boot) -> None:
    assert out(boot, "emulated").split()[1:] == ["qemu", "emulated"]
    assert "no kvm: VMM_ACCEL=tcg says so" in boot.results["emulated"].err


def test_a_guest_serves_by_kvm(boot: Boot) -> None:
    assert out(boot, "serve").splitlines()[1:] == ["from the host", "from the host"]
    look = boot.results["look"]
    domain, quota, processors, stats, row = look.out.splitlines()
    assert "type='kvm'" in domain
    assert "50000" in quota
    assert processors == "1"
    assert stats.startswith("web 1 ")
    assert "MiB / 9" in stats, "what 128 MiB leave to the workload"
    assert row.startswith("web Up ")
    assert "127.0.0.1:8080->80/tcp" in row
    assert "Read-only file system" in look.err
    assert out(boot, "pause").split() == ["web", "paused", "web", "from", "the", "host"]


def test_a_guest_ends_and_its_volume_stays(boot: Boot) -> None:
    assert out(boot, "stop").split() == ["web", "137", "web", "kept"], "as process 1"


def test_a_container_on_cgroup2_alone_with_nftables(boot: Boot) -> None:
    _, page, *rest = out(boot, "container").splitlines()
    assert page == "from the box"
    limits = ["33554432", "50000 100000", "1", "20"]
    assert [line for line in rest if line and not line.startswith("==>")] == [
        *limits, "box", "1", "box", "box", "50331648", "0::/", "box", "code 137", "true", "greedy",
    ]  # fmt: skip


def test_nothing_is_left(boot: Boot) -> None:
    left = boot.results["left"].out
    assert [line.split(":")[1].strip() for line in left.splitlines() if ": <" in line] == ["lo"]
    assert "table" not in left
    assert "/sys/fs/cgroup" not in left
    assert "\n0\n" in left, "mounts"
