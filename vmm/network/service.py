"""The networks of one instance: the default bridge, endpoints, published ports.

The kernel is the truth: whatever was removed behind our back (the bridge by a reboot, the table
by ``flush ruleset``) is made again by the next :meth:`NetworkService.ensure_bridge`. When
all is in place, that costs a few system calls and starts no program.

Locks: ``<run_dir>/network.lock`` for every change, and inside it ``host_lock``, shared by all
instances, for the choice of a subnet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vmm.model.backend import Endpoint
from vmm.model.errors import Conflict, HostError, Unsupported, UsageError
from vmm.model.ids import link_name
from vmm.model.network import NetworkRecord
from vmm.model.spec import Port
from vmm.network import ledger, links_linux, nft, subnets
from vmm.network.claims import Claims
from vmm.network.firewall_linux import Firewall
from vmm.network.ledger import Ledger
from vmm.network.names import host_resolv, is_loopback, name_servers
from vmm.network.nft import Published
from vmm.network.records import NetworkRecords, find, is_complete
from vmm.network.subnets import Subnet
from vmm.ports.files import locked

if TYPE_CHECKING:
    from vmm.ports.runner import Runner

HOST_LOCK = Path("/run/vmm/subnets.lock")


class Ensured(NamedTuple):
    """The network as it now is, and what was changed on the host that the user should know."""

    record: NetworkRecord
    notices: tuple[str, ...] = ()


class NetworkService:
    """``mark`` names the packet filter's table, ``bridge`` the interface (Settings)."""

    def __init__(
        self,
        *,
        mark: str,
        bridge: str,
        root: Path,
        run_dir: Path,
        pools: Sequence[str],
        prefix: int,
        mtu: int,
        claims: Claims,
        runner: Runner,
        host_lock: Path = HOST_LOCK,
    ) -> None:
        self._records = NetworkRecords(root / "networks", bridge)
        self._ledger = Ledger(run_dir / "published.json")
        self._firewall = Firewall(mark, runner)
        self._bridge, self._mtu = bridge, mtu
        self._pools, self._prefix = tuple(pools), prefix
        self._claims, self._runner = claims, runner
        self._run_dir, self._host_lock = run_dir, host_lock

    @property
    def lock(self) -> Path:
        """The lock file of the instance's networks (also the name service's)."""
        os.makedirs(self._run_dir, mode=0o700, exist_ok=True)
        return self._run_dir / "network.lock"

    # ---- networks

    def list(self) -> Sequence[NetworkRecord]:
        """All networks by name; ``bridge``, ``host`` and ``none`` always exist."""
        records = self._records.load()
        if is_complete(records):
            return records
        with locked(self.lock):
            return self._records.complete()

    def inspect(self, name: str) -> NetworkRecord:
        """A network by name, id or unique prefix of its id."""
        return find(self.list(), name)

    def ensure_bridge(self) -> Ensured:
        """The default bridge, ready for workloads: link, address, forwarding, table.

        Unsupported when the host cannot have one; Conflict when its subnet now collides.
        """
        record = self.inspect("bridge")
        if self._is_ready(record):
            return Ensured(record)
        with locked(self.lock):
            return self._make_ready(self.inspect("bridge"))

    def is_intact(self) -> bool:
        """Whether the table is whole, or not needed: without a bridge there is nothing to guard."""
        if links_linux.link_state(self._bridge) is None:
            return True
        return self._firewall.is_intact(self._bridges())

    def warnings(self) -> tuple[str, ...]:
        """What ``ps`` and ``info`` say of the network's state."""
        if self.is_intact():
            return ()
        return (
            f"the packet filter's table inet {self._firewall.table.name} was removed or changed: "
            "workloads reach nothing outside, and published ports (except on loopback) are at "
            "best relayed; the next command that uses the network, such as vmm run, restores it",
        )

    def detect_blocking(self) -> str | None:
        """The foreign rule that would drop this instance's traffic, and what to add; or None."""
        from vmm.network.audit import find_blocking, find_legacy_blocking

        own = self._firewall.table.name
        found = find_blocking(self._firewall.ruleset(), own, self.inspect("bridge"))
        return found or find_legacy_blocking(self._bridge, self._runner)

    def teardown(self) -> bool:
        """Remove the bridge and the table unless a workload's link is attached; whether done."""
        with locked(self.lock):
            present = links_linux.link_state(self._bridge) is not None
            if present and not links_linux.remove_bridge(self._bridge):
                return False
            self._ledger.write({})
            self._firewall.remove()
        return True

    # ---- endpoints

    def endpoint(
        self, record: NetworkRecord, workload_id: str, address: str = "", mac: str = ""
    ) -> Endpoint:
        """Claim an address (``address``, else the lowest free one) for the workload."""
        if not record.subnets:
            raise Unsupported(
                f"the network {record.name} gives no addresses", "use --network bridge"
            )
        subnet = subnets.parse(record.subnets[0])
        wanted: Iterable[str] = subnets.candidates(subnet)
        if address:
            wanted = (subnets.check_address(subnet, address),)
        mac = subnets.check_mac(mac) if mac else ""
        claimed = self._claims.claim_address(record.id, workload_id, wanted)
        return Endpoint(
            bridge=record.bridge,
            link=link_name(workload_id),
            address=claimed,
            prefix=subnet.prefix,
            gateway=record.gateway,
            mac=mac or subnets.mac_for(claimed),
            mtu=self._mtu,
        )

    def release(self, workload_id: str) -> None:
        """Give up what the workload holds: redirected ports, then addresses. Idempotent."""
        self.unpublish(workload_id)
        self._claims.release(workload_id)

    # ---- published ports

    def publish(self, workload_id: str, target: str, ports: Iterable[Port]) -> None:
        """Redirect those of the (bound) ports that are not relayed to ``target``.

        The caller has the sockets, so another workload that still holds one of the ports
        has ended without being cleaned up, and loses it.
        """
        wanted = tuple(port for port in ports if nft.is_redirected(port))
        if not wanted:
            self.unpublish(workload_id)
            return
        with locked(self.lock):
            before = self._ledger.read()
            after = ledger.without_ports(before, {ledger.key(port) for port in wanted})
            after[workload_id] = Published(target=target, ports=wanted)
            self._ledger.write(after)
            self._change(before, after)

    def unpublish(self, workload_id: str) -> None:
        """Stop redirecting the workload's ports; nothing is done when it has none."""
        if workload_id not in self._ledger.read():
            return
        with locked(self.lock):
            before = self._ledger.read()
            after = {who: what for who, what in before.items() if who != workload_id}
            self._change(before, after)
            self._ledger.write(after)

    def _change(self, before: dict[str, Published], after: dict[str, Published]) -> None:
        """Bring the maps from one state to the other; when they are not as thought, anew."""
        removed = [what for who, what in before.items() if after.get(who) != what]
        added = [what for who, what in after.items() if before.get(who) != what]
        try:
            self._firewall.change(removed, added)
        except HostError:
            self._firewall.rebuild(self._bridges(), after.values())

    # ---- making the bridge

    def _bridges(self) -> Sequence[NetworkRecord]:
        return [r for r in self._records.load() if r.driver == "bridge" and r.subnets]

    def _is_ready(self, record: NetworkRecord) -> bool:
        state = links_linux.link_state(self._bridge)
        return (
            state is not None
            and state.up
            and bool(record.subnets)
            and state.address == _bridge_address(record)
            and links_linux.forwarding()
            and self._firewall.is_intact(self._bridges())
        )

    def _make_ready(self, record: NetworkRecord) -> Ensured:
        """Under the lock: do what is missing, the table first, so that no link is unguarded."""
        state = links_linux.link_state(self._bridge)
        if state is None:
            self._require()
        if state is None or not record.subnets or state != (True, _bridge_address(record)):
            record = self._place_bridge(record, state)
        if not self._firewall.is_intact(self._bridges()):
            self._firewall.rebuild(self._bridges(), self._ledger.read().values())
        return Ensured(record, self._forward())

    def _require(self) -> None:
        from vmm.network.probe import require_bridge

        require_bridge(self._runner)

    def _place_bridge(
        self, record: NetworkRecord, state: links_linux.LinkState | None
    ) -> NetworkRecord:
        """Settle the subnet, save it, make the link; no other instance chooses meanwhile."""
        os.makedirs(self._host_lock.parent, mode=0o711, exist_ok=True)
        with locked(self._host_lock):
            routes = links_linux.host_subnets(self._bridge)
            record = self._settle_subnet(record, state, routes)
            self._firewall.rebuild(self._bridges(), self._ledger.read().values())
            links_linux.ensure_bridge(self._bridge, _bridge_address(record), self._mtu)
        return record

    def _settle_subnet(
        self, record: NetworkRecord, state: links_linux.LinkState | None, routes: Sequence[Subnet]
    ) -> NetworkRecord:
        """Keep the subnet once chosen; choose anew only while no workload has an address of it.

        A bridge that is there already, but not recorded (its root was removed), is adopted.
        """
        if record.subnets:
            kept = subnets.parse(record.subnets[0])
            other = subnets.collision(kept, routes)
            if other is None:
                return record
            if self._claims.addresses(record.id):
                raise _collision(record, kept, other)
        taken = [*routes, *_server_subnets()]
        adopted = subnets.parse(state.address) if state and state.address else None
        if record.subnets or adopted is None or subnets.collision(adopted, taken):
            adopted = subnets.choose(self._pools, self._prefix, taken)
        record = msgspec.structs.replace(
            record, subnets=(str(adopted),), gateway=subnets.gateway(adopted)
        )
        self._records.save(record)
        return record

    def _forward(self) -> tuple[str, ...]:
        if links_linux.forwarding():
            return ()
        links_linux.enable_forwarding()
        return (
            "net.ipv4.ip_forward was 0 and is now 1: this host forwards packets between its "
            "interfaces (keep it over reboots, or restrict it, in /etc/sysctl.d and nftables)",
        )


def _bridge_address(record: NetworkRecord) -> str:
    _, _, bits = record.subnets[0].partition("/")
    return f"{record.gateway}/{bits}"


def _server_subnets() -> list[Subnet]:
    """The host's name servers: a subnet over them would cut the host off."""
    servers = (s for s in name_servers(host_resolv()) if ":" not in s and not is_loopback(s))
    found = []
    for server in servers:
        with contextlib.suppress(UsageError):
            found.append(Subnet(subnets.number(server), 32))
    return found


def _collision(record: NetworkRecord, kept: Subnet, other: Subnet) -> Conflict:
    return Conflict(
        f"the subnet {kept} of the network {record.name} now collides with the host's "
        f"route to {other}",
        "remove that route, or remove the workloads that have an address of this network: "
        "then a new subnet is chosen",
    )
