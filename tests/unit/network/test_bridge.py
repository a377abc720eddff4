"""The bridge and the packet filter, against a real kernel in namespaces of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.network.netlab import UPLINK, WORLD, Lab
from vmm.model.errors import Conflict, Unsupported
from vmm.model.spec import Port
from vmm.network.service import NetworkService

A, B, C = "a" * 64, "b" * 64, "c" * 64
ANY = "0.0.0.0"


def tcp(host_ip: str, host_port: int, container_port: int = 8080) -> Port:
    return Port(host_ip=host_ip, host_port=host_port, container_port=container_port)


def test_bridge_is_made_once_and_said(lab: Lab) -> None:
    service = lab.service()
    lab.host.sh("sysctl", "-qw", "net.ipv4.ip_forward=0")
    made = lab.host.call(service.ensure_bridge)
    assert made.record.subnets == ("172.17.0.0/20",)
    assert made.record.gateway == "172.17.0.1"
    assert "ip_forward was 0 and is now 1" in made.notices[0]
    link = json.loads(lab.host.ip("-j", "-d", "address", "show", "vmm-1a2b3c4d"))[0]
    assert link["linkinfo"]["info_kind"] == "bridge"
    assert link["address"] == "02:42:ac:11:00:01"
    assert [a["local"] for a in link["addr_info"]] == ["172.17.0.1"]
    again = lab.host.call(service.ensure_bridge)
    assert again == (made.record, ())


def test_nothing_is_loaded_or_run_when_all_is_in_place(lab: Lab) -> None:
    service = lab.service()
    made = lab.host.call(service.ensure_bridge)
    code = """
import sys
from pathlib import Path
from vmm.network.service import NetworkService
class NoPrograms:
    def run(self, argv, **rest): raise AssertionError(argv)
root = Path(sys.argv[1])
service = NetworkService(mark="vmm-1a2b3c4d", bridge="vmm-1a2b3c4d", root=root / "root",
    run_dir=root / "run", pools=(), prefix=20, mtu=1500, claims=None, runner=NoPrograms())
print(service.ensure_bridge().record.id, service.is_intact())
service.unpublish("a" * 64)
slow = {"pyroute2", "subprocess", "logging", "asyncio", "tempfile"}
print(sorted(slow & set(sys.modules)))
"""
    out = lab.host.python(code, str(lab.tmp / "vmm-1a2b3c4d"))
    assert out.split("\n")[:2] == [f"{made.record.id} True", "[]"]


def test_workloads_reach_out_masqueraded_and_each_other_plainly(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    one, at_one = lab.workload(service, A)
    two, at_two = lab.workload(service, B)
    assert (at_one.address, at_two.address) == ("172.17.0.2", "172.17.0.3")
    lab.world.serve(80)
    two.serve(81)
    assert one.ask(WORLD, 80) == UPLINK
    assert one.ask(at_two.address, 81) == at_one.address


def test_nobody_outside_reaches_an_unpublished_port(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, at = lab.workload(service, A)
    inside.serve(8080)
    lab.world.ip("route", "add", "172.16.0.0/12", "via", UPLINK)
    assert lab.world.ask(at.address, 8080) is None
    assert lab.host.ask(at.address, 8080) == at.gateway
    lab.host.sh("nft", "delete", "table", "inet", "vmm-1a2b3c4d")
    assert lab.world.ask(at.address, 8080) == WORLD, "only our rules kept it out"


@pytest.mark.parametrize("address", [ANY, UPLINK])
def test_published_port_from_everywhere(lab: Lab, address: str) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, at = lab.workload(service, A)
    neighbour, _ = lab.workload(service, B)
    inside.serve(8080)
    lab.host.serve(80)
    lab.host.call(service.publish, A, at.address, [tcp(address, 80)])
    assert lab.world.ask(UPLINK, 80) == WORLD
    assert lab.host.ask(UPLINK, 80) == UPLINK
    assert neighbour.ask(UPLINK, 80) == at.gateway
    assert inside.ask(UPLINK, 80) == at.address, "left to the socket that the relay serves"
    redirected = address == ANY
    assert neighbour.ask(at.gateway, 80) == (at.gateway if redirected else "172.17.0.3")
    assert lab.world.ask(UPLINK, 8080) is None
    assert lab.host.sh("nft", "list", "table", "inet", "vmm-1a2b3c4d").count("elements") == 3
    lab.host.call(service.unpublish, A)
    assert "elements" not in lab.host.sh("nft", "list", "table", "inet", "vmm-1a2b3c4d")


def test_udp_is_published_apart_from_tcp(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, at = lab.workload(service, A)
    inside.serve(53, socket.SOCK_DGRAM)
    inside.serve(53)
    port = Port(host_ip=ANY, host_port=5353, container_port=53, protocol="udp")
    lab.host.call(service.publish, A, at.address, [port])
    assert lab.world.ask(UPLINK, 5353, socket.SOCK_DGRAM) == WORLD
    assert lab.world.ask(UPLINK, 5353) is None


def test_loopback_is_left_to_the_socket(lab: Lab) -> None:
    """0.0.0.0: loopback comes to the relay's socket, everything else is redirected."""
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, at = lab.workload(service, A)
    inside.serve(8080)
    lab.host.serve(80)
    lab.host.call(service.publish, A, at.address, [tcp(ANY, 80)])
    assert lab.host.ask("127.0.0.1", 80) == "127.0.0.1"
    assert lab.host.ask(UPLINK, 80) == UPLINK
    assert lab.world.ask(UPLINK, 80) == WORLD
    localnet = lab.host.sh("sysctl", "-n", "net.ipv4.conf.vmm-1a2b3c4d.route_localnet")
    assert localnet.strip() == "0"


def test_port_on_loopback_is_not_redirected(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, at = lab.workload(service, A)
    inside.serve(8080)
    lab.host.call(service.publish, A, at.address, [tcp("127.0.0.1", 80), tcp("::1", 80)])
    for namespace in (lab.world, inside):
        assert namespace.ask(UPLINK, 80) is None
    assert inside.ask(at.gateway, 80) is None
    assert not (lab.tmp / "vmm-1a2b3c4d" / "run" / "published.json").exists()


def test_loopback_of_the_host_cannot_be_reached_by_a_neighbours_route(lab: Lab) -> None:
    """CVE-2020-8558: a neighbour that sends packets for 127.0.0.1 our way."""
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, _ = lab.workload(service, A)
    lab.host.serve(80)
    for namespace, link, via in ((lab.world, "w0", UPLINK), (inside, "eth0", "172.17.0.1")):
        namespace.sh("sysctl", "-qw", f"net.ipv4.conf.{link}.route_localnet=1")
        namespace.ip("address", "del", "127.0.0.1/8", "dev", "lo")
        namespace.ip("route", "add", "127.0.0.1/32", "via", via)
        assert namespace.ask("127.0.0.1", 80) is None
    lab.host.sh("sysctl", "-qw", "net.ipv4.conf.vmm-1a2b3c4d.route_localnet=1")
    assert inside.ask("127.0.0.1", 80), "the attack works where the kernel allows it"


def test_instances_are_isolated_from_each_other(lab: Lab) -> None:
    first, second = lab.service("vmm-11111111"), lab.service("vmm-22222222")
    lab.host.call(first.ensure_bridge)
    lab.host.call(second.ensure_bridge)
    one, at_one = lab.workload(first, A)
    two, at_two = lab.workload(second, B)
    assert (at_one.address, at_two.address) == ("172.17.0.2", "172.17.16.2")
    for namespace in (one, two):
        namespace.serve(80)
    assert one.ask(at_two.address, 80) is None
    assert two.ask(at_one.address, 80) is None
    lab.host.call(second.publish, B, at_two.address, [tcp(UPLINK, 8000, 80)])
    assert one.ask(UPLINK, 8000) is not None


def test_flushed_ruleset_is_noticed_and_restored_whole(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, at = lab.workload(service, A)
    inside.serve(8080)
    lab.world.serve(99)
    lab.host.call(service.publish, A, at.address, [tcp(ANY, 80)])
    before = lab.host.sh("nft", "-s", "list", "ruleset")
    assert lab.host.call(service.warnings) == ()
    lab.host.sh("nft", "flush", "ruleset")
    assert "vmm-1a2b3c4d was removed" in lab.host.call(service.warnings)[0]
    assert inside.ask(WORLD, 99) is None
    lab.host.call(service.ensure_bridge)
    assert lab.host.sh("nft", "-s", "list", "ruleset") == before
    assert lab.world.ask(UPLINK, 80) == WORLD
    assert inside.ask(WORLD, 99) == UPLINK


@pytest.mark.parametrize("damage", ["flush table inet vmm-1a2b3c4d", "flush chain inet {} forward"])
def test_half_a_table_is_noticed(lab: Lab, damage: str) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    lab.host.sh("nft", damage.format("vmm-1a2b3c4d"))
    assert not lab.host.call(service.is_intact)
    lab.host.call(service.ensure_bridge)
    assert lab.host.call(service.is_intact)


def test_unpublish_after_a_flush_does_not_fail(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    lab.host.call(service.publish, A, "172.17.0.2", [tcp(ANY, 80)])
    lab.host.call(service.publish, B, "172.17.0.3", [tcp(ANY, 81)])
    lab.host.sh("nft", "flush", "ruleset")
    lab.host.call(service.release, A)
    shown = lab.host.sh("nft", "list", "table", "inet", "vmm-1a2b3c4d")
    assert "tcp . 81" in shown and "tcp . 80" not in shown


def test_port_of_a_dead_workload_is_taken_over(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    lab.host.call(service.publish, A, "172.17.0.2", [tcp(ANY, 80), tcp(ANY, 81)])
    lab.host.call(service.publish, B, "172.17.0.3", [tcp(ANY, 80)])
    lab.host.call(service.publish, B, "172.17.0.3", [tcp(ANY, 80)])
    shown = lab.host.sh("nft", "list", "map", "inet", "vmm-1a2b3c4d", "any_target")
    assert "tcp . 80 : 172.17.0.3" in shown and "tcp . 81 : 172.17.0.2" in shown
    lab.host.call(service.release, A)
    shown = lab.host.sh("nft", "list", "map", "inet", "vmm-1a2b3c4d", "any_target")
    assert "tcp . 80 : 172.17.0.3" in shown and "81" not in shown


def test_elements_left_by_a_killed_command_do_not_stop_the_next(lab: Lab) -> None:
    """Killed between the kernel's change and the note of it, in either direction."""
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    note = lab.tmp / "vmm-1a2b3c4d" / "run" / "published.json"
    lab.host.call(service.publish, A, "172.17.0.2", [tcp(ANY, 80)])
    noted = note.read_bytes()
    note.unlink()
    lab.host.call(service.publish, B, "172.17.0.3", [tcp(ANY, 80)])
    lab.host.call(service.unpublish, B)
    note.write_bytes(noted)
    lab.host.call(service.unpublish, A)
    shown = lab.host.sh("nft", "list", "table", "inet", "vmm-1a2b3c4d")
    assert "elements" not in shown


def test_foreign_tables_stay_as_they_are(lab: Lab) -> None:
    service = lab.service()
    lab.host.sh("nft", "add table ip mine; add chain ip mine c; add rule ip mine c accept")
    before = lab.host.sh("nft", "list", "table", "ip", "mine")
    lab.host.call(service.ensure_bridge)
    lab.host.call(service.publish, A, "172.17.0.2", [tcp(ANY, 80)])
    assert lab.host.call(service.teardown)
    assert lab.host.sh("nft", "list", "ruleset") == before


def test_teardown_leaves_nothing_and_waits_for_workloads(lab: Lab) -> None:
    service = lab.service()
    made = lab.host.call(service.ensure_bridge)
    _, at = lab.workload(service, A)
    assert not lab.host.call(service.teardown)
    lab.host.ip("link", "del", at.link)
    assert lab.host.call(service.teardown)
    assert "vmm-" not in lab.host.ip("link") + lab.host.sh("nft", "list", "ruleset")
    assert lab.host.call(service.teardown)
    assert lab.host.call(service.ensure_bridge).record == made.record


def test_subnet_is_kept_unless_it_collides(lab: Lab) -> None:
    service = lab.service()
    kept = lab.host.call(service.ensure_bridge).record
    lab.host.call(service.teardown)
    lab.host.ip("route", "add", "172.17.0.0/16", "via", WORLD)
    service.endpoint(kept, A)
    with pytest.raises(Conflict, match=r"172\.17\.0\.0/20 .* route to 172\.17\.0\.0/16"):
        lab.host.call(service.ensure_bridge)
    service.release(A)
    assert lab.host.call(service.ensure_bridge).record.subnets == ("172.18.0.0/20",)


def test_instances_that_start_at_once_choose_apart(lab: Lab) -> None:
    """Two commands of each of three instances, all at the same time."""
    services = [lab.service(f"vmm-{n}{n}{n}{n}{n}{n}{n}{n}") for n in (1, 2, 3)] * 2
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda s: lab.host.call(s.ensure_bridge).record, services))
    assert made[:3] == made[3:]
    assert len({record.subnets for record in made}) == 3
    for service in services:
        assert lab.host.call(service.is_intact)


def test_kill_at_any_moment_leaves_what_the_next_command_completes(lab: Lab) -> None:
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            lab.host.enter()
            lab.service().ensure_bridge()
            lab.service().publish(A, "172.17.0.2", [tcp(ANY, 80)])
            os._exit(0)
        time.sleep(0.004 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        service = lab.service()
        record = lab.host.call(service.ensure_bridge).record
        assert [r.name for r in service.list()] == ["bridge", "host", "none"]
        lab.host.call(service.publish, A, "172.17.0.2", [tcp(ANY, 80)])
        lab.host.call(service.release, A)
        assert "elements" not in lab.host.sh("nft", "list", "table", "inet", "vmm-1a2b3c4d")
        assert record.subnets == ("172.17.0.0/20",)
        if attempt % 2:
            assert lab.host.call(service.teardown)


def test_bridge_left_half_made_is_completed(lab: Lab) -> None:
    service = lab.service()
    lab.host.ip("link", "add", "vmm-1a2b3c4d", "type", "bridge")
    lab.host.call(service.ensure_bridge)
    lab.host.ip("address", "flush", "dev", "vmm-1a2b3c4d")
    lab.host.ip("address", "add", "10.9.9.1/24", "dev", "vmm-1a2b3c4d")
    lab.host.ip("link", "set", "vmm-1a2b3c4d", "down")
    lab.host.call(service.ensure_bridge)
    shown = json.loads(lab.host.ip("-j", "address", "show", "vmm-1a2b3c4d"))[0]
    assert [a["local"] for a in shown["addr_info"]] == ["172.17.0.1"]
    assert "UP" in shown["flags"]


def test_bridge_of_a_removed_root_is_adopted(lab: Lab, tmp_path: Path) -> None:
    lab.host.call(lab.service(pools=("10.80.0.0/16",)).ensure_bridge)
    made = lab.host.call(lab.service(root=tmp_path / "new").ensure_bridge)
    assert made.record.subnets == ("10.80.0.0/20",)


def test_foreign_interface_of_that_name(lab: Lab) -> None:
    lab.host.ip("link", "add", "vmm-1a2b3c4d", "type", "veth", "peer", "other")
    with pytest.raises(Conflict, match="is no bridge"):
        lab.host.call(lab.service().ensure_bridge)


def test_host_without_nft_is_refused_with_the_reason(lab: Lab) -> None:
    def without_nft(service: NetworkService) -> None:
        import os

        os.environ["PATH"] = "/nowhere"
        service.ensure_bridge()

    with pytest.raises(Unsupported, match="nft: program not found") as raised:
        lab.host.call(without_nft, lab.service())
    assert "--network none" in raised.value.hint
    assert "vmm-" not in lab.host.ip("link")


def test_predefined_networks(lab: Lab) -> None:
    service = lab.service()
    assert [(r.name, r.driver) for r in service.list()] == [
        ("bridge", "bridge"),
        ("host", "host"),
        ("none", "null"),
    ]
    assert len({r.id for r in service.list()}) == 3
    assert service.list() == lab.service().list()
    assert service.inspect(service.inspect("none").id[:12]).name == "none"
    with pytest.raises(Unsupported):
        service.endpoint(service.inspect("none"), A)
