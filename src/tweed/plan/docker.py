"""What dockerd needs to put docker0 on this node's subnet, as flannel's mk-docker-opts.sh says it, or for daemon.json. Pure.

    subnet.env               flag of dockerd                  key of daemon.json
    FLANNEL_SUBNET           --bip=10.244.1.1/24              bip
    FLANNEL_MTU              --mtu=1450                       mtu
    FLANNEL_IPMASQ=true      --ip-masq=false                  ip-masq
    FLANNEL_IPV6_SUBNET      --fixed-cidr-v6=…, --ipv6        fixed-cidr-v6, ipv6

The last is not flannel's. Who masquerades already (FLANNEL_IPMASQ) must be the only one: Docker's own rule would hide pods from pods.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from tweed.addr import Prefix
from tweed.errors import TweedError
from tweed.plan.screen import Problem
from tweed.wire.flannel import SubnetEnv

Bridge = tuple[str, Prefix]  # device and address, host bits kept
DOCKER0 = "docker0"


class Options(msgspec.Struct, frozen=True):
    """`bip`: docker0's own address with its prefix length. `ip_masq` False: Docker must not masquerade; None: nothing is said of it."""

    bip: Prefix | None = None
    fixed_cidr_v6: Prefix | None = None
    ip_masq: bool | None = None
    mtu: int | None = None

    @property
    def individual(self) -> dict[str, str]:
        """By mk-docker-opts.sh's variable names, in its order."""
        v6 = {"DOCKER_OPT_FIXED_CIDR_V6": f"--ipv6 --fixed-cidr-v6={self.fixed_cidr_v6}"} if self.fixed_cidr_v6 is not None else {}
        return {
            **({"DOCKER_OPT_BIP": f"--bip={self.bip}"} if self.bip is not None else {}),
            **v6,
            **({"DOCKER_OPT_IPMASQ": f"--ip-masq={str(self.ip_masq).lower()}"} if self.ip_masq is not None else {}),
            **({"DOCKER_OPT_MTU": f"--mtu={self.mtu}"} if self.mtu is not None else {}),
        }

    @property
    def daemon_json(self) -> dict[str, Any]:
        v6 = {"ipv6": True, "fixed-cidr-v6": str(self.fixed_cidr_v6)} if self.fixed_cidr_v6 is not None else {}
        plain = {"bip": str(self.bip) if self.bip is not None else None, "ip-masq": self.ip_masq, "mtu": self.mtu}
        return {key: value for key, value in plain.items() if value is not None} | v6


SPLIT_MIN = 8  # addresses: a half has its base, its gateway, a container, and IPv4's broadcast address
KEYS = ("bip", "ip-masq", "mtu", "ipv6", "fixed-cidr-v6")  # those of daemon.json that are ours to set


def options(env: SubnetEnv, *, ip_masq: bool = True, split: bool = False) -> Options:
    """`ip_masq` False: say nothing of masquerading (old dockerd has no such flag). `split`: docker0 gets `docker_half` of each subnet.

    Raises TweedError for a subnet that is too small to be split.
    """
    small = [each for each in env.subnets if split and each.step < SPLIT_MIN]
    if small:
        raise TweedError(f"{small[0]} is too small to split: each half needs {SPLIT_MIN // 2} addresses; give nodes larger subnets (SubnetLen)")
    subnet, subnet6 = (docker_half(each) if split and each is not None else each for each in (env.subnet, env.subnet6))
    return Options(
        bip=Prefix(subnet.host(1), subnet.length) if subnet is not None else None,
        fixed_cidr_v6=subnet6,
        ip_masq=False if env.ip_masq and ip_masq else None,
        mtu=env.mtu,
    )


def docker_half(subnet: Prefix) -> Prefix:
    """The upper half; the lower one, with the node's own address, stays with the pods."""
    return Prefix(subnet.host(subnet.step // 2), subnet.length + 1)


def pods_half(subnet: Prefix) -> Prefix:
    return Prefix(subnet.address, subnet.length + 1)


def check_free(subnets: Collection[Prefix], bridges: list[Bridge], *, split: bool) -> None:
    """Raises TweedError where another bridge already has addresses that Docker would give to its containers."""
    for subnet in subnets:
        wanted = docker_half(subnet) if split else subnet
        for name, address in bridges:
            if name == DOCKER0 or not address.network.overlaps(wanted):
                continue
            in_the_way = f"while no container is on it, take {address} from {name}, or remove it (ip link del {name})"
            how = "use --split" if not address.network.overlaps(docker_half(subnet)) else in_the_way + ("" if split else ", and use --split to have both")
            raise TweedError(f"{name} has {address}, so its containers and Docker's would share {wanted}: {how}")


def pods_subnet(subnet: Prefix, pods: Collection[str], bridges: list[Bridge]) -> Prefix:
    """What is left of the node's subnet for pods: all of it, or the lower half where another bridge than `pods` is in the upper one (or will be).

    Raises TweedError where such a bridge is anywhere else in it.
    """
    left = subnet
    for name, address in bridges:
        if name not in pods and address.network.overlaps(subnet):
            if not docker_half(subnet).contains(address.network):
                way_out = "use one of them, or give Docker the upper half (tweed docker-opts --split) and restart it"
                raise TweedError(f"{name} has {address}, so its containers and the pods would share {subnet}: {way_out}")
            left = pods_half(subnet)
    return left


def environment(options: Options, *, individual: bool, combined: bool, key: str, earlier: str = "") -> str:
    """The text of mk-docker-opts.sh's file. `earlier`: the value that the variable `key` has already, which it keeps in front."""
    lines = [f'{name}="{value}"' for name, value in options.individual.items()] if individual else []
    if combined:
        lines.append(f'{key}="{earlier} {"".join(value + " " for value in options.individual.values())}"')
    return "".join(line + "\n" for line in lines)


def merged(daemon_json: str, options: Options, path: str) -> str:
    """A daemon.json with our keys set and everything else kept. Raises TweedError for a text that is none."""
    try:
        there = msgspec.json.decode(daemon_json or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise TweedError(f"{path}: {error}; mend or remove it first") from None
    kept = {name: value for name, value in there.items() if name not in KEYS}
    return msgspec.json.format(msgspec.json.encode(kept | options.daemon_json), indent=4).decode() + "\n"


def bridge_problems(networks: tuple[Prefix, ...], subnets: tuple[Prefix, ...], pods: Collection[str], bridges: list[Bridge]) -> list[Problem]:
    """What is wrong with the addresses of container bridges such as docker0: on a subnet that is not this node's (any more), or on the pods' own.

    `pods`: the bridges that tweed itself puts pods on.
    """
    found = []
    podded = [(name, address) for name, address in bridges if name in pods]
    for name, address in bridges:
        if not any(network.contains(address.address) for network in networks):
            continue
        own = next((subnet for subnet in subnets if subnet.contains(address.address)), None)
        if own is None:
            mine = " and ".join(str(subnet) for subnet in subnets if subnet.family == address.family) or "none"
            way_out = "make them anew, the old address goes with the last" if name in pods else "set it anew (tweed docker-opts) and restart Docker"
            found.append(Problem("bridge-subnet", name, f"has {address}, but this node's subnet is {mine}: no other node reaches its containers; {way_out}"))
        elif name in pods:
            continue
        elif shared := [other for other, theirs in podded if address.network.overlaps(theirs.network)]:
            text = f"has {address}, and {shared[0]} is on the same subnet: containers of both may get one address; split it (tweed docker-opts --split)"
            found.append(Problem("shared-subnet", name, text))
    return found
