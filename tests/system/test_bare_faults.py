"""Faults that no catalogue has, put in with bare commands while the agents look on: named by tables alone, and mended by the walk's commands."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from tests.system.conftest import Lab, ping, running, tweed

MAC = "$(ip neigh show 10.244.2.0 dev flannel.1 | sed 's/.*lladdr \\([^ ]*\\).*/\\1/')"
# Where it is put in, the commands, and what the walk from master/pod1 to node2/pod1 says: node, device (a name that begins so), cause.
FAULTS = {
    "a container's gateway": (
        "master/pod1",
        "ip route flush dev eth0; ip route add 10.244.0.0/24 dev eth0; ip route add default via 10.244.0.77 dev eth0",
        "master/pod1",
        "eth0",
        "gateway-wrong",
    ),
    "a container's device": ("node2/pod1", "ip link set eth0 down", "node2/pod1", "eth0", "device-down"),
    "the VTEP's address": ("master", "ip addr flush dev flannel.1", "master", "flannel.1", "address-missing"),
    "the VTEP's MAC": ("master", "ip link set flannel.1 address 02:00:00:00:77:77", "master", "flannel.1", "vtep-mac-wrong"),
    "no VTEP": ("node2", "ip link del flannel.1", "node2", "flannel.1", "vtep-missing"),
    "no bridge": ("master", "ip link del cni0", "master", "cni0", "device-missing"),
    "a rule that is turned round": (
        "master",
        "ip route add unreachable default table 200; ip rule add not to 192.168.2.0/24 lookup 200 pref 8",
        "master",
        "",
        "rule-diverts",
    ),
    "a thrown route": ("master", "ip route add throw 10.244.2.0/25", "master", "flannel.1", "route-throw"),
    "the port in an fdb row": (
        "master",
        f"M={MAC}; bridge fdb del $M dev flannel.1 dst 192.168.2.202 self; bridge fdb add $M dev flannel.1 dst 192.168.2.202 port 9999 self permanent",
        "master",
        "flannel.1",
        "port-mismatch",
    ),
    "the underlay's network": ("master", "ip route del 192.168.2.0/24", "master", "ens33", "underlay-route-wrong"),
    "the host's address": ("node2", "ip addr flush dev ens33", "node2", "ens33", "address-missing"),
    "a policy that drops": (
        "node2",
        "nft 'add table inet x; add chain inet x f { type filter hook forward priority 0; policy drop; }'",
        "node2",
        "flannel.1",
        "firewall-drops",
    ),
    "answers rejected": (
        "master",
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; add rule ip x f iifname flannel.1 ip saddr 10.244.2.0/24 reject'",
        "master",
        "flannel.1",
        "firewall-drops",
    ),
    "somebody else's address": ("master", "ip addr add 10.244.2.2/32 dev lo", "master", "lo", "address-elsewhere"),
}


def walk(lab: Lab) -> dict[str, Any]:
    done = tweed("walk", "10.244.0.2", "10.244.2.2", "--lab", lab.name, "--json")
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("title", FAULTS)
def test_it_is_named_and_mended(title: str):
    where, commands, node, device, cause = FAULTS[title]
    with running(f"b{os.getpid()}") as lab:
        assert walk(lab)["verdict"] == "delivered"
        assert lab.tweed("pause").returncode == 0
        lab.run(where, commands)
        found = walk(lab)
        divergence = found["first_divergence"]
        assert found["verdict"] in ("dropped", "lost", "elsewhere", "detour") and divergence is not None
        assert (divergence["node"], divergence["cause"]) == (node, cause) and divergence["device"].startswith(device)
        assert not [each for each in found["findings"] if each["id"] == "evaluation-differs"]
        for fix in divergence["fix"]:
            lab.run(fix["node"], fix["command"])
        again = walk(lab)
        assert (again["verdict"], again["first_divergence"]) == ("delivered", None)
        src, dst = lab.pod("master/pod1"), lab.pod("node2/pod1")
        assert not ping([(src.netns, dst.ip()), (dst.netns, src.ip())])
