"""Compiled filters, loaded into real processes that then make the calls."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.container.samples import HOST, spec
from vmm.backends.container import ContainerBackend
from vmm.backends.linux import seccomp
from vmm.model.errors import HostError, InvalidDocument
from vmm.model.spec import Security

EPERM, EINVAL, ENOSYS, OK = 1, 22, 38, 0
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="not amd64")

#: Loads the filter, then prints the errno of each call, by syscall(2) or by int 0x80.
CHILD = """
import ctypes, json, mmap, sys
program, calls = bytes.fromhex(sys.argv[1]), json.loads(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
code = mmap.mmap(-1, 4096, prot=7)
# push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; int 0x80; pop rbx; ret
code.write(bytes.fromhex("5389f889f389d1cd805bc3"))
view = (ctypes.c_char * 4096).from_buffer(code)
old = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 3)(ctypes.addressof(view))
class Prog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
prog = Prog(len(program) // 8, program)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(prog), 0, 0) == 0, ctypes.get_errno()
out = []
for how, number, *args in calls:
    if how == "int80":
        value = old(number, *(args + [0, 0])[:2])
        out.append(-value if -4096 < value < 0 else 0)
    else:
        ctypes.set_errno(0)
        libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in (args + [0] * 6)[:6]))
        out.append(ctypes.get_errno())
print(json.dumps(out))
"""

MOUNT, UNSHARE, CLONE, CLONE3, SOCKET, PERSONALITY = 165, 272, 56, 435, 41, 135
KEYCTL, BPF, IO_URING_SETUP, OPEN_BY_HANDLE, USERFAULTFD = 250, 321, 425, 304, 323
INIT_MODULE, KEXEC, REBOOT, SETNS, PIVOT_ROOT, SETTIME = 175, 246, 169, 308, 155, 227
GETPID, PTRACE, SETUID, CAPSET, CLOSE_RANGE, EXECVE = 39, 101, 105, 126, 436, 59
NEWEST_KNOWN, FCHMODAT2, MSEAL = 450, 452, 462


def errors(program: bytes, *calls: tuple[object, ...]) -> list[int]:
    """The errno of each call in a process with the filter; 0 is success."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, program.hex(), json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


def call(number: int, *args: int) -> tuple[object, ...]:
    return ("syscall", number, *args)


@pytest.fixture(scope="module")
def default() -> bytes:
    return seccomp.compiled(spec(), HOST, "")


def test_default_denies_what_reaches_the_host(default: bytes) -> None:
    denied = [MOUNT, UNSHARE, KEYCTL, BPF, IO_URING_SETUP, OPEN_BY_HANDLE, USERFAULTFD, SETTIME]
    denied += [INIT_MODULE, KEXEC, REBOOT, SETNS, PIVOT_ROOT]
    assert errors(default, *(call(number) for number in denied)) == [EPERM] * len(denied)


def test_default_allows_everyday_calls(default: bytes) -> None:
    af_inet, stream = 2, 1
    assert errors(default, call(GETPID), call(SETUID, 0), call(CLOSE_RANGE, 900, 901)) == [OK] * 3
    assert errors(default, call(SOCKET, af_inet, stream)) == [OK]
    assert errors(default, call(PTRACE, 0xFFFF))[0] != EPERM


def test_default_denies_vsock_and_odd_personalities(default: bytes) -> None:
    af_vsock, addr_no_randomize, query = 40, 0x40000, 0xFFFFFFFF
    calls = [call(SOCKET, af_vsock, 1), call(PERSONALITY, addr_no_randomize)]
    assert errors(default, *calls, call(PERSONALITY, query)) == [EPERM, EPERM, OK]


def test_new_namespaces_are_denied_by_clone_and_clone3(default: bytes) -> None:
    new_user = 0x10000000
    assert errors(default, call(CLONE, new_user | 17), call(CLONE3)) == [EPERM, ENOSYS]


def test_calls_newer_than_the_library_do_not_exist(default: bytes) -> None:
    assert errors(default, call(600), call(5000), call(0x0FFFFFFF)) == [ENOSYS] * 3
    found = errors(default, call(FCHMODAT2), call(MSEAL))
    assert EPERM not in found


def test_32_bit_calls_are_filtered_too(default: bytes) -> None:
    getpid, mount, beyond = ("int80", 20), ("int80", 21), ("int80", 600)
    assert errors(default, getpid, mount, beyond) == [OK, EPERM, ENOSYS]


def test_x32_calls_do_not_exist(default: bytes) -> None:
    x32 = 0x40000000
    assert errors(default, call(x32 | GETPID), call(x32 | MOUNT)) == [ENOSYS, ENOSYS]


def test_capabilities_open_what_they_are_for() -> None:
    admin = seccomp.compiled(spec(security=Security(cap_add=("SYS_ADMIN",))), HOST, "")
    assert EPERM not in errors(admin, call(UNSHARE, 0), call(CLONE3))
    none = seccomp.compiled(spec(security=Security(cap_drop=("ALL",))), HOST, "")
    chroot = 161
    assert errors(none, call(chroot)) == [EPERM]


def test_privileged_and_unconfined_have_no_filter() -> None:
    assert seccomp.compiled(spec(security=Security(privileged=True)), HOST, "") == b""
    assert seccomp.compiled(spec(security=Security(seccomp="unconfined")), HOST, "") == b""


def test_custom_profile_with_arguments_and_its_own_error() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"name": "getppid", "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
            {
                "names": ["socket", "no_such_call"],
                "action": "SCMP_ACT_ERRNO",
                "args": [
                    {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                    {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
                ],
            },
        ],
    }
    program = seccomp.compiled(spec(security=Security(seccomp=json.dumps(profile))), HOST, "")
    getppid, unix, inet, netlink = (
        call(110),
        call(SOCKET, 1, 1),
        call(SOCKET, 2, 1),
        call(41, 16, 3),
    )
    assert errors(program, getppid, unix, inet, netlink) == [99, EPERM, OK, EPERM]
    assert errors(program, ("int80", 20)) == [ENOSYS]


BAD = {
    "{": "truncated",
    "[]": "Expected `object`",
    '{"syscalls": []}': "defaultAction",
    '{"defaultAction": "SCMP_ACT_MAYBE"}': "no such action 'SCMP_ACT_MAYBE'",
    '{"defaultAction": "SCMP_ACT_NOTIFY"}': "needs a listener",
    '{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}': "70000",
    '{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x"]}': "no such architecture",
    '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]}': "syscalls[0]",
    "[" * 100_000: "",
    '{"defaultAction": "\udc80"}': "",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_bad_profiles_say_what_is_wrong(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument) as caught:
        seccomp.compiled(spec(security=Security(seccomp=text)), HOST, str(tmp_path))
    assert BAD[text] in str(caught.value)
    assert caught.value.hint


def test_all_faults_of_a_profile_at_once() -> None:
    bad = {"names": ["x"], "action": "NO", "args": [{"index": 9, "value": 1, "op": "=="}]}
    text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [bad, {"action": "NO"}]})
    with pytest.raises(InvalidDocument) as caught:
        seccomp.compiled(spec(security=Security(seccomp=text)), HOST, "")
    assert len(caught.value.faults) == 5


def test_the_cache_is_used_and_a_damaged_entry_is_not(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    backend = ContainerBackend()
    first = backend.filter(spec(), HOST, str(cache))
    [entry] = cache.iterdir()
    inode = entry.stat().st_ino
    assert backend.filter(spec(), HOST, str(cache)) == first
    assert entry.stat().st_ino == inode
    entry.write_bytes(entry.read_bytes()[:-8])
    assert backend.filter(spec(), HOST, str(cache)) == first
    assert backend.filter(spec(security=Security(cap_drop=("ALL",))), HOST, str(cache)) != first
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(("count", "what"), [(5000, "instructions"), (50_000, "rules")])
def test_a_profile_too_large_for_the_kernel_is_refused(count: int, what: str) -> None:
    compares = [{"index": 0, "value": n, "op": "SCMP_CMP_EQ"} for n in range(count)]
    entry = {"name": "read", "action": "SCMP_ACT_ERRNO", "args": compares}
    text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry]})
    with pytest.raises(HostError, match=what):
        seccomp.compiled(spec(security=Security(seccomp=text)), HOST, "")
