"""Hosts files, resolv.conf."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vmm.model.errors import UsageError
from vmm.model.network import Member
from vmm.network.names import HostsFiles, parse_extra_host, render_hosts, resolv_conf, rewrite

A, B = "a" * 64, "b" * 64


def member(path: Path, workload: str, address: str, *names: str, extra: str = "") -> Member:
    return Member(
        workload=workload,
        address=address,
        names=names,
        hosts_path=str(path),
        extra_hosts=(extra,) if extra else (),
    )


def entries(text: str) -> dict[str, list[str]]:
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {words[0]: words[1:] for words in lines}


def test_members_find_each_other(tmp_path: Path) -> None:
    one = member(tmp_path / "1", A, "172.17.0.2", "web", "web", "a" * 12, "www")
    two = member(tmp_path / "2", B, "172.17.0.3", "db-host", "db", extra="gw:host-gateway")
    HostsFiles(tmp_path / "lock").update("172.17.0.1", lambda: [one, two])
    first, second = (entries((tmp_path / n).read_text()) for n in "12")
    assert first["127.0.0.1"] == ["localhost"] and "localhost" in first["::1"]
    assert first["172.17.0.2"] == ["web", "a" * 12, "www"]
    assert first["172.17.0.3"] == ["db-host", "db"]
    assert second["172.17.0.2"] == ["web", "a" * 12, "www"]
    assert second["172.17.0.1"] == ["gw"] and "172.17.0.1" not in first


def test_files_keep_their_inode_and_shrink(tmp_path: Path) -> None:
    names = HostsFiles(tmp_path / "lock")
    one = member(tmp_path / "1", A, "172.17.0.2", "one")
    two = member(tmp_path / "2", B, "172.17.0.3", "two")
    names.update("172.17.0.1", lambda: [one, two])
    before = os.stat(tmp_path / "1")
    names.update("172.17.0.1", lambda: [one])
    after = os.stat(tmp_path / "1")
    assert before.st_ino == after.st_ino
    assert (tmp_path / "1").read_text() == render_hosts(one)
    assert after.st_mode & 0o777 == 0o644


def test_unchanged_file_is_not_written(tmp_path: Path) -> None:
    assert rewrite(tmp_path / "h", "text\n")
    os.utime(tmp_path / "h", ns=(1, 1))
    assert not rewrite(tmp_path / "h", "text\n")
    assert os.stat(tmp_path / "h").st_mtime_ns == 1


def test_hostile_file_is_replaced_without_reading_it_all(tmp_path: Path) -> None:
    with open(tmp_path / "h", "wb") as file:
        file.truncate(1 << 40)
    rewrite(tmp_path / "h", "text\n")
    assert (tmp_path / "h").read_text() == "text\n"
    (tmp_path / "victim").write_text("host")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        rewrite(tmp_path / "link", "text\n")
    assert (tmp_path / "victim").read_text() == "host"


def test_member_that_is_being_removed_is_left_out(tmp_path: Path) -> None:
    gone = member(tmp_path / "gone" / "hosts", A, "172.17.0.2", "gone")
    here = member(tmp_path / "here", B, "172.17.0.3", "here")
    HostsFiles(tmp_path / "lock").update("172.17.0.1", lambda: [gone, here])
    assert "here" in (tmp_path / "here").read_text()


def test_concurrent_updates_leave_the_newest(tmp_path: Path) -> None:
    """Whoever asks for the members asks under the lock, so no older list is written later."""
    names = HostsFiles(tmp_path / "lock")
    members: list[Member] = []

    def join(number: int) -> None:
        path = tmp_path / str(number)
        members.append(member(path, f"{number:064x}", f"172.17.1.{number}", f"n{number}"))
        names.update("172.17.0.1", lambda: list(members))

    threads = [threading.Thread(target=join, args=(n,)) for n in range(2, 22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2, 22):
        found = entries((tmp_path / str(number)).read_text())
        assert sum(address.startswith("172.17.1.") for address in found) == 20


def test_names_cannot_add_lines() -> None:
    text = render_hosts(Member(workload=A, address="172.17.0.2", names=("ok", "a\n6.6.6.6 bank"),
                               hosts_path=""))  # fmt: skip
    assert "6.6.6.6" not in text and entries(text)["172.17.0.2"] == ["ok"]


def test_without_an_address_only_localhost_and_extra_hosts() -> None:
    own = Member(workload=A, address="", names=("h",), hosts_path="", extra_hosts=("db:10.0.0.9",))
    found = entries(render_hosts(own))
    assert found["10.0.0.9"] == ["db"] and not any(v == ["h"] for v in found.values())


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("db:10.0.0.9", ("db", "10.0.0.9")),
        ("db=10.0.0.9", ("db", "10.0.0.9")),
        ("db:::1", ("db", "::1")),
        ("db:[fe80::1]", ("db", "fe80::1")),
        ("gw:host-gateway", ("gw", "host-gateway")),
    ],
)
def test_extra_hosts(text: str, parsed: tuple[str, str]) -> None:
    assert parse_extra_host(text) == parsed


@pytest.mark.parametrize("text", ["", "db", "db:", ":1.2.3.4", "a b:1.2.3.4", "db:host", "d\n:::1"])
def test_wrong_extra_hosts(text: str) -> None:
    with pytest.raises(UsageError):
        parse_extra_host(text)


def test_gateway_where_there_is_none() -> None:
    own = Member(workload=A, address="", names=(), hosts_path="", extra_hosts=("g:host-gateway",))
    with pytest.raises(UsageError, match="no host-gateway"):
        render_hosts(own)


HOST = """# a comment
nameserver 127.0.0.53
nameserver 10.1.1.53
nameserver fe80::1%eth0
search one.example
search two.example three.example
options ndots:2 trust-ad
"""


def test_resolver_drops_servers_that_cannot_be_reached() -> None:
    assert resolv_conf(HOST) == (
        "nameserver 10.1.1.53\nsearch two.example three.example\noptions ndots:2 trust-ad\n"
    )
    assert resolv_conf(HOST, loopback_ok=True).count("nameserver") == 3


def test_resolver_parts_that_are_given_replace_the_hosts() -> None:
    text = resolv_conf(HOST, dns=["127.0.0.1", "9.9.9.9"], search=["."], options=["rotate"])
    assert text == "nameserver 127.0.0.1\nnameserver 9.9.9.9\noptions rotate\n"


def test_no_server_is_invented() -> None:
    text = resolv_conf("nameserver 127.0.0.53\n")
    assert text.startswith("# no name server") and "127.0.0.53" in text and "--dns" in text
    assert "\nnameserver" not in "\n" + text


@pytest.mark.parametrize("word", ["9.9.9.9\nnameserver 6.6.6.6", "a b", "", "x\0"])
def test_resolver_words_cannot_add_lines(word: str) -> None:
    for parts in ([[word], [], []], [[], [word], []], [[], [], [word]]):
        with pytest.raises(UsageError):
            resolv_conf(HOST, *parts)
