"""What an agent says of itself: one JSON document, from which the text for people and the metrics are made."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from tweed import __version__
from tweed.addr import format_address, format_mac
from tweed.agent.problems import all_problems
from tweed.model import Endpoint, Lease, Vtep
from tweed.plan.attachment import as_json
from tweed.plan.backend import way
from tweed.plan.rows import endpoint_rows

if TYPE_CHECKING:
    from tweed.agent.agent import Agent

ENCRYPTION = "none: overlay traffic is not encrypted"


def document(agent: Agent) -> dict[str, Any]:
    """The answer to GET /v1/status. Addresses and times are text, durations seconds unless the name says otherwise; null where unknown."""
    membership, underlay = agent.membership, agent.underlay
    own = membership.own if membership is not None else None
    lease = own.lease if own is not None else Lease()
    report = agent.report
    return {
        "version": __version__,
        "node": agent.settings.node_name,
        "pid": os.getpid(),
        "started": _time(agent.started_at),
        "ready": agent.ready,
        "reason": agent.reason or (agent.fenced if agent.fenced else None),
        "paused": agent.paused,
        "encryption": ENCRYPTION,
        "public_ip": _address(underlay.local if underlay else None),
        "public_ip6": _address(underlay.local6 if underlay else None),
        "subnet": _subnet(lease.v4),
        "subnet6": _subnet(lease.v6),
        "vtep_mac": _mac(lease.v4),
        "vtep_mac6": _mac(lease.v6),
        "mtu": agent.mtu or None,
        "network": _network(agent),
        "underlay": None
        if underlay is None
        else {"device": underlay.device, "mtu": underlay.mtu, "why": underlay.why, "instead_of": list(underlay.instead_of)},
        "store": {
            "url": agent.settings.store,
            "flags": list(agent.settings.store_flags),
            "answers": membership is not None and agent.talk.away_since is None,
            "away_since": _time(agent.talk.away_since) if agent.talk.away_since is not None else None,
            "away_why": agent.talk.away_why or None,
            "revision": membership.revision if membership is not None else None,
        },
        "lease": None
        if own is None
        else {"key": own.key, "expires_in_s": membership.expires_in_s if membership else None, "reservation": own.ttl_s is None, "revision": own.revision},
        "devices": [
            {
                "name": v.name,
                "vni": v.vni if isinstance(v, Vtep) else None,
                "port": v.port,
                "local": format_address(v.local),
                "underlay": v.underlay,
                "mac": format_mac(v.mac) if isinstance(v, Vtep) else None,
                "mtu": v.mtu,
                "address": str(v.address),
                "failure": report.device_failures.get(v.name),
            }
            for v in agent.dataplane.backend.devices
        ],
        "forwarding": _forwarding(agent),
        "peers": _peers(agent),
        "problems": [{"id": p.id, "subject": p.subject, "text": p.text} for p in all_problems(agent)],
        "failures": [{"command": str(f.change), "errno": f.errno, "text": f.text} for f in report.failures]
        + [{"command": None, "errno": None, "text": f"{name}: {text}"} for name, text in report.device_failures.items()],
        "reconcile": {
            "last": _time(agent.last_pass_at) if agent.last_pass_at else None,
            "reason": agent.last_reason or None,
            "duration_ms": round(report.duration_s * 1000, 3),
            "changes": agent.last_changes,
            "passes": agent.passes,
            "repairs": agent.repairs,
        },
        "firewall": agent.firewall.status(),
        "pods": len(agent.attachments.list()),
        "attachments": [as_json(attachment) for attachment in agent.attachments.list()],
    }


def _forwarding(agent: Agent) -> dict[str, Any] | None:
    """The process of the UDP mode, null without one."""
    report = agent.forwarding.report
    if report is None:
        return None
    return {
        "pid": report.pid,
        "data_path": report.data_path,
        "starts": agent.forwarding.starts,
        "offloads": {name: why or "on" for name, why in report.offloads.items()},
        "notes": list(report.notes),
        "mtu": "outer packets have no DF: a router with a smaller MTU cuts them, and the peer's kernel puts them together",
        "fast_peers": report.fast_peers,
        "segmenting_off": {host: os.strerror(code) for host, code in report.segmenting_off.items()},
        "counters": report.counters,
    }


def _peers(agent: Agent) -> list[dict[str, Any]]:
    """Every lease that is not ours, with the rows that carry traffic to it, or why there are none."""
    if agent.membership is None or agent.network is None:
        return []
    own = agent.membership.own
    failed = {f.change.row for f in agent.report.failures if f.change.op == "replace"}
    dataplane = agent.dataplane
    why: dict[str, list[str]] = {}
    for problem in agent.screened.problems:
        why.setdefault(problem.subject, []).append(problem.text)
    peers = []
    for key in sorted(agent.membership.records):
        if own is not None and key == own.key:
            continue
        record = agent.membership.records[key]
        programmed = dataplane.peers.get(key)
        endpoints = list(programmed.endpoints) if programmed is not None else []
        rows = [row for e in endpoints for row in endpoint_rows(e, dataplane.backend.tunnels, dataplane.reaches)]
        ways = {e.subnet: way(dataplane.backend, e, dataplane.reaches) for e in endpoints}
        carried = agent.complete and (dataplane.backend.kind != "udp" or agent.forwarding.told.issuperset(endpoints))
        state = "failed" if any(row in failed for row in rows) else "programmed" if carried else "pending"
        if programmed is None:
            state = "reserved" if record.reserved else "skipped"
        elif dataplane.backend.kind == "host-gw" and agent.complete and not rows:
            state = "refused"
        peers.append(
            {
                "key": key,
                "node": record.owner.node if record.owner else None,
                "backend": record.lease.backend or None,
                "state": state,
                "why": "; ".join(why.get(key, [])) or None,
                "endpoints": [_endpoint(e, ways.get(e.subnet)) for e in record.lease.endpoints],
                "rows": [str(row) for row in rows],
            }
        )
    return peers


def _network(agent: Agent) -> dict[str, Any] | None:
    network = agent.network
    if network is None:
        return None
    return {"networks": [str(n) for n in network.networks], "backend": network.backend, "direct_routing": network.direct_routing}


def _endpoint(endpoint: Endpoint, way: str | None) -> dict[str, Any]:
    """`way`: how packets get there and why so, null where nothing is programmed."""
    return {"subnet": str(endpoint.subnet), "public_ip": _address(endpoint.public_ip), "vtep_mac": _mac(endpoint), "way": way}


def _address(address: bytes | None) -> str | None:
    return format_address(address) if address else None


def _mac(endpoint: Endpoint | None) -> str | None:
    return format_mac(endpoint.mac) if endpoint is not None and endpoint.mac is not None else None


def _subnet(endpoint: Endpoint | None) -> str | None:
    return str(endpoint.subnet) if endpoint is not None else None


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
