"""Subnets and addresses as numbers."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.model.errors import Conflict, UsageError
from vmm.network import subnets
from vmm.network.subnets import choose, parse

POOLS = ("172.17.0.0/12", "10.64.0.0/10")


def test_first_free_subnet_from_the_address_written_in_the_pool() -> None:
    assert str(choose(POOLS, 20, [])) == "172.17.0.0/20"
    assert str(choose(POOLS, 20, [parse("172.17.0.0/16")])) == "172.18.0.0/20"
    assert str(choose(POOLS, 20, [parse("172.17.5.1/32")])) == "172.17.16.0/20"
    assert str(choose(POOLS, 20, [parse("172.17.0.0/16"), parse("172.18.0.0/15")])) == (
        "172.20.0.0/20"
    )


def test_pool_wraps_and_then_the_next_pool_is_used() -> None:
    taken = [parse("172.17.0.0/16"), parse("172.18.0.0/15"), parse("172.20.0.0/14")]
    taken.append(parse("172.24.0.0/13"))
    assert str(choose(POOLS, 20, taken)) == "172.16.0.0/20"
    assert str(choose(POOLS, 20, [*taken, parse("172.16.0.0/16")])) == "10.64.0.0/20"


def test_nothing_free_is_an_error_with_what_to_do() -> None:
    with pytest.raises(Conflict, match="no free subnet") as raised:
        choose(("192.168.0.0/23",), 24, [parse("192.168.0.0/16")])
    assert "subnet_pools" in raised.value.hint
    with pytest.raises(UsageError, match="does not fit"):
        choose(("192.168.0.0/24",), 20, [])
    with pytest.raises(UsageError, match="does not fit"):
        choose(("192.168.0.0/24",), 31, [])


def test_addresses_leave_out_network_gateway_and_broadcast() -> None:
    net = parse("10.0.0.0/29")
    assert subnets.gateway(net) == "10.0.0.1"
    assert list(subnets.candidates(net)) == [f"10.0.0.{n}" for n in range(2, 7)]
    big = subnets.candidates(parse("10.0.0.0/8"))
    assert list(itertools.islice(big, 2)) == ["10.0.0.2", "10.0.0.3"]


@pytest.mark.parametrize("address", ["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.1.2", "x", "::1"])
def test_addresses_that_cannot_be_given(address: str) -> None:
    with pytest.raises(UsageError):
        subnets.check_address(parse("10.0.0.0/29"), address)


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "10.0.0.256/8", "010.0.0.0/8", "10.0.0.0/-1",
     "10.0.0.0/²", "a.b.c.d/8", "10.0.0.0/8 ", "1" * 5000 + ".0.0.0/8"],
)  # fmt: skip
def test_malformed_subnets(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_hardware_address_follows_the_address() -> None:
    assert subnets.mac_for("172.17.0.2") == "02:42:ac:11:00:02"
    assert subnets.check_mac("02:42:AC:11:00:02") == "02:42:ac:11:00:02"
    for wrong in ("", "01:00:00:00:00:01", "00:00:00:00:00:00", "02:42:ac:11:00", "02-42-ac"):
        with pytest.raises(UsageError):
            subnets.check_mac(wrong)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_overlap_agrees_with_the_standard_library(a: int, an: int, b: int, bn: int) -> None:
    texts = f"{subnets.dotted(a)}/{an}", f"{subnets.dotted(b)}/{bn}"
    ours = [parse(text) for text in texts]
    theirs = [ipaddress.ip_network(text, strict=False) for text in texts]
    assert [str(one) for one in ours] == [str(one) for one in theirs]
    assert ours[0].overlaps(ours[1]) == theirs[0].overlaps(theirs[1])
