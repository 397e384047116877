"""Prometheus metrics, read from the agent at the moment they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from tweed.agent.problems import all_problems
from tweed.udp.packet import DROPPED

if TYPE_CHECKING:
    from tweed.agent.agent import Agent

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AgentCollector(Collector):
    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def collect(self) -> Iterator[Metric]:
        agent, membership = self.agent, self.agent.membership
        report = agent.report
        left = membership.expires_in_s if membership is not None else None
        gauges: list[tuple[str, str, float]] = [
            ("tweed_ready", "1 when this node is in the overlay and every known peer is programmed", agent.ready),
            ("tweed_paused", "1 while the agent was told to change nothing", agent.paused),
            ("tweed_fenced", "1 when another node holds this node's lease", bool(agent.fenced)),
            ("tweed_peers", "leases of other nodes that are programmed", len(agent.dataplane.peers)),
            ("tweed_leases", "leases in the store", len(membership.records) if membership is not None else 0),
            ("tweed_failures", "changes that the kernel refused in the last pass", len(report.failures) + len(report.device_failures)),
            ("tweed_pods", "containers attached on this node", len(agent.attachments.list())),
            ("tweed_store_up", "1 while the store answers", membership is not None and agent.talk.away_since is None),
            ("tweed_reconcile_last_duration_seconds", "wall time of the last pass", report.duration_s),
            ("tweed_reconcile_last_cpu_seconds", "CPU time of the last pass", report.cpu_s),
        ]
        if left is not None:
            gauges.append(("tweed_lease_expires_in_seconds", "time left of this node's lease", left))
        if (away := agent.talk.away_since) is not None:
            gauges.append(("tweed_store_away_since_timestamp_seconds", "when the store stopped answering; absent while it answers", away))
        for name, text, value in gauges:
            yield GaugeMetricFamily(name, text, value=float(value))
        for name, text, count in (
            ("tweed_reconcile_passes", "passes since the agent started", agent.passes),
            ("tweed_repairs", "rows and device attributes put back after they were lost or changed", agent.repairs),
            ("tweed_lease_changes", "notices of changes from the store", agent.lease_changes),
        ):
            yield CounterMetricFamily(name, text, value=float(count))
        if (forwarder := agent.forwarding.report) is not None:
            carried = CounterMetricFamily(
                "tweed_udp", "what the forwarding process of the UDP mode has carried, in packets, bytes or system calls", labels=["what"]
            )
            dropped = CounterMetricFamily("tweed_udp_drops", "packets that it has dropped, by reason", labels=["reason"])
            for name, count in forwarder.counters.items():
                (dropped if name in DROPPED else carried).add_metric([name], count)
            yield from (carried, dropped)
            yield CounterMetricFamily("tweed_udp_starts", "times that this agent has started it", value=float(agent.forwarding.starts))
        problems = GaugeMetricFamily("tweed_problems", "things that an operator should know, by kind; see tweed status", labels=["id"])
        for kind, count in sorted(Counter(problem.id for problem in all_problems(agent)).items()):
            problems.add_metric([kind], count)
        yield problems


def text(agent: Agent) -> bytes:
    """All of them, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(AgentCollector(agent))
    return generate_latest(registry)
