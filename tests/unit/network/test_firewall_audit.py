"""Foreign chains that drop a bridge's traffic are found and named; and what the host can do."""

from __future__ import annotations

import pytest

from tests.unit.network.netlab import UPLINK, WORLD, Lab, Namespace
from vmm.network.netlink_linux import count_rules, link_kind_error
from vmm.network.probe import capabilities
from vmm.ports.runner import HostRunner

BRIDGE = "vmm-1a2b3c4d"
OPEN = (
    f"nft insert rule inet fw gate iifname {BRIDGE} accept && "
    f"nft insert rule inet fw gate oifname {BRIDGE} accept"
)
BASE = "type filter hook forward priority 0; policy"

BLOCKING = {
    "policy drop": f"chain gate {{ {BASE} drop; }}",
    "answers only": f"chain gate {{ {BASE} drop; ct state {{ established, related }} accept; }}",
    "another bridge": f'chain gate {{ {BASE} drop; iifname "docker0" accept; }}',
    "final reject": f"chain gate {{ {BASE} accept; ct state established accept; reject; }}",
    "jump": f"chain never {{ counter drop;\n }}\n chain gate {{ {BASE} accept; jump never; }}",
    "state map": (
        f"chain gate {{ {BASE} drop; ct state vmap {{ established : accept, invalid : drop }}; }}"
    ),
    "one way": f'chain gate {{ {BASE} drop; iifname "{BRIDGE}" accept; }}',
    "our source": f"chain gate {{ {BASE} accept; ip saddr 172.16.0.0/12 drop; }}",
}
ALLOWING = {
    "policy accept": f"chain gate {{ {BASE} accept; }}",
    "both ways": f'chain gate {{ {BASE} drop; iifname "vmm*" accept; oifname "vmm*" accept; }}',
    "in a set": (
        f'chain gate {{ {BASE} drop; iifname {{ "x", "{BRIDGE}" }} accept; '
        f'oifname "{BRIDGE}" ct state {{ new, established }} accept; }}'
    ),
    "other interface": (
        f'chain gate {{ {BASE} accept; iifname "eth7" drop; '
        f'iifname "{BRIDGE}" oifname != "up0" drop; }}'
    ),
    "returns": f"chain sub {{ return; drop;\n }}\n chain gate {{ {BASE} accept; jump sub; }}",
    "not forward": "chain inside { type filter hook input priority 0; policy drop; }",
    "loop free jump": f"chain a {{ counter;\n }}\n chain gate {{ {BASE} accept; goto a; drop; }}",
}


@pytest.mark.parametrize("name", BLOCKING)
def test_chain_that_drops_is_named(lab: Lab, name: str) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    lab.host.sh("nft", f"table inet fw {{\n{BLOCKING[name]}\n}}")
    found = lab.host.call(service.detect_blocking)
    assert found is not None and "chain gate of table inet fw drops" in found
    assert OPEN in found


@pytest.mark.parametrize("name", ALLOWING)
def test_chain_that_does_not_drop_is_not_named(lab: Lab, name: str) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    lab.host.sh("nft", f"table inet fw {{\n{ALLOWING[name]}\n}}")
    assert lab.host.call(service.detect_blocking) is None


def test_our_rules_do_not_open_the_hosts_firewall_and_the_advice_does(lab: Lab) -> None:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, _ = lab.workload(service, "a" * 64)
    lab.world.serve(80)
    lab.host.sh("nft", f"table inet fw {{\n{BLOCKING['policy drop']}\n}}")
    assert inside.ask(WORLD, 80) is None
    advice = lab.host.call(service.detect_blocking)
    assert advice is not None
    lab.host.sh("sh", "-c", advice.partition("allow it: ")[2])
    assert lab.host.call(service.detect_blocking) is None
    assert inside.ask(WORLD, 80) == UPLINK


def test_other_instances_are_not_in_the_way(lab: Lab) -> None:
    for mark in ("vmm-11111111", "vmm-22222222"):
        lab.host.call(lab.service(mark).ensure_bridge)
    assert lab.host.call(lab.service("vmm-11111111").detect_blocking) is None


def test_capabilities_of_this_host_change_nothing(namespace: Namespace) -> None:
    before = namespace.ip("link") + namespace.sh("nft", "list", "ruleset")
    found = namespace.call(capabilities, HostRunner())
    assert [c.name for c in found if c.available] [:4] == [
        "network-bridge", "nftables", "bridge-links", "veth-links",
    ]  # fmt: skip
    assert namespace.ip("link") + namespace.sh("nft", "list", "ruleset") == before


def test_forwarding_is_reported(namespace: Namespace) -> None:
    for value in ("0", "1"):
        namespace.sh("sysctl", "-qw", f"net.ipv4.ip_forward={value}")
        last = namespace.call(capabilities, HostRunner())[-1]
        assert (last.name, last.available) == ("ip-forward", value == "1")


def test_kernel_questions(namespace: Namespace) -> None:
    assert namespace.call(link_kind_error, "nosuchkind") == "the kernel has no nosuchkind links"
    assert namespace.call(count_rules, "nosuchtable") == 0
    rules = "; ".join("add rule inet many c counter" for _ in range(500))
    namespace.sh("nft", f"add table inet many; add chain inet many c; {rules}")
    assert namespace.call(count_rules, "many") == 500
