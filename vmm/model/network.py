"""Networks and endpoints as objects (inspectable, with ids)."""

import msgspec


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``driver`` is bridge, host or null (``none``)."""

    id: str
    name: str
    driver: str
    subnets: tuple[str, ...] = ()
    gateway: str = ""
    #: Name of the bridge interface.
    bridge: str = ""
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    created: int = 0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A running workload on a network, as the name service sees it."""

    workload: str
    address: str
    #: Host name first, then name, short id and aliases.
    names: tuple[str, ...]
    hosts_path: str
    #: What runs it: whether it sees that file itself, or has a copy of it.
    backend: str = "container"
    extra_hosts: tuple[str, ...] = ()
