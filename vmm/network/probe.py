"""What this host allows of networking, each with the reason when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.model.backend import Capability
from vmm.model.errors import Unsupported
from vmm.network.firewall_linux import Firewall
from vmm.network.links_linux import forwarding
from vmm.network.netlink_linux import link_kind_error

if TYPE_CHECKING:
    from vmm.ports.runner import Runner


def capabilities(runner: Runner) -> list[Capability]:
    """The network ``bridge`` first, then what it is made of. Nothing on the host is changed."""
    parts = [
        _capability("nftables", Firewall("vmm-probe", runner).refusal()),
        _capability("bridge-links", link_kind_error("bridge")),
        _capability("veth-links", link_kind_error("veth")),
    ]
    missing = "; ".join(part.reason for part in parts if not part.available)
    on = forwarding()
    forward = Capability(
        name="ip-forward",
        available=on,
        reason="" if on else "net.ipv4.ip_forward is 0; it is set by the first bridge",
    )
    return [_capability("network-bridge", missing), *parts, forward]


def require_bridge(runner: Runner) -> None:
    """Raise Unsupported with the reasons when bridge networks are not possible."""
    whole = capabilities(runner)[0]
    if not whole.available:
        raise Unsupported(
            f"the network bridge is not possible on this host: {whole.reason}",
            "use --network none or --network host",
        )


def _capability(name: str, refusal: str) -> Capability:
    return Capability(name=name, available=not refusal, reason=refusal)
