"""Each fault of the catalogue: tables alone name what is wrong, and the commands that the walk gives, typed where it says, mend it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.system.conftest import Lab, eventually, ping, tweed

# Fault, where the divergence is (of the fault's node and its peer; `/pod` is the pod), device, cause.
FAULTS = [
    ("route-missing", "node", "flannel.1", "route-missing"),
    ("route-wrong-node", "node", "flannel.1", "route-wrong-node"),
    ("route-blackhole", "node", "flannel.1", "route-blackhole"),
    ("route-leftover", "node", "flannel.1", "route-leftover"),
    ("rule-other-table", "node", "ens33", "rule-diverts"),
    ("pod-route-missing", "node/pod", "eth0", "route-missing"),
    ("neighbour-missing", "node", "flannel.1", "neighbour-missing"),
    ("vtep-mac-stale", "node", "flannel.1", "vtep-mac-stale"),
    ("fdb-missing", "node", "flannel.1", "fdb-missing"),
    ("fdb-wrong-host", "node", "flannel.1", "fdb-wrong-host"),
    ("underlay-neighbour-wrong", "node", "ens33", "underlay-neighbour-wrong"),
    ("vtep-mac-duplicate", "peer", "flannel.1", "vtep-mac-duplicate"),
    ("vni-mismatch", "node", "flannel.1", "vni-mismatch"),
    ("port-mismatch", "node", "flannel.1", "port-mismatch"),
    ("vtep-down", "node", "flannel.1", "device-down"),
    ("vxlan-port-taken", "node", "flannel.1", "vtep-second"),
    ("local-wrong", "node", "flannel.1", "local-wrong"),
    ("nic-down", "node", "ens33", "device-down"),
    ("bridge-down", "node", "cni0", "device-down"),
    ("veth-detached", "node", "veth*", "bridge-port-missing"),
    ("pod-mtu", "node/pod", "eth0", "mtu-too-large"),
    ("udp-dropped", "node", "ens33", "firewall-drops"),
    ("forward-dropped", "node", "cni0", "firewall-drops"),
    ("rp-filter", "node", "flannel.1", "rp-filter"),
    ("ip-forward-off", "node", "*", "forwarding-off"),
]


def walk(lab: Lab, src: str, dst: str) -> dict[str, Any]:
    done = tweed("walk", src, dst, "--lab", lab.name, "--json")
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def fits(pattern: str, device: str) -> bool:
    return device.startswith(pattern.rstrip("*")) if pattern.endswith("*") else device == pattern


@pytest.mark.parametrize(("fault", "where", "device", "cause"), FAULTS, ids=[row[0] for row in FAULTS])
def test_tables_name_the_fault_and_mend_it(lab: Lab, fault: str, where: str, device: str, cause: str):
    done = lab.tweed("break", fault, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    try:
        found = walk(lab, told["src"], told["dst"])
        divergence = found["first_divergence"]
        assert found["verdict"] in ("dropped", "lost", "detour") and divergence is not None
        pod = next(end for end in (told["src"], told["dst"]) if end.startswith(told["node"]))
        place = {"node": told["node"], "peer": told["peer"], "node/pod": pod}[where]
        assert (divergence["node"], divergence["cause"]) == (place, cause)
        assert fits(device, divergence["device"])
        assert divergence["evidence"] and not [each for each in found["findings"] if each["id"] == "evaluation-differs"]
        for fix in divergence["fix"]:
            lab.run(fix["node"], fix["command"])
        again = walk(lab, told["src"], told["dst"])
        assert (again["verdict"], again["first_divergence"]) == ("delivered", None)
        src, dst = lab.pod(told["src"]), lab.pod(told["dst"])
        assert not ping([(src.netns, dst.ip()), (dst.netns, src.ip())])
    finally:
        healed = lab.tweed("heal")
    assert healed.returncode == 0, healed.stderr
    eventually(lab.whole, "all agents have programmed all others")


def test_each_fault_is_here(lab: Lab):
    names = {row["name"] for row in json.loads(tweed("lab", "faults", "--json").stdout)}
    assert names == {row[0] for row in FAULTS}
