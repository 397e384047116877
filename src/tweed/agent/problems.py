"""What an operator should know of a node now, gathered from all that its agent looks at, and said once in the log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tweed.agent.dataplane import LOG_ROWS
from tweed.agent.leftovers import Leftovers, as_problem
from tweed.agent.log import log
from tweed.agent.membership import KEPT_S
from tweed.plan.backend import refused
from tweed.plan.flannel_rules import stray_routes
from tweed.plan.screen import Problem

if TYPE_CHECKING:
    from tweed.agent.agent import Agent


def all_problems(agent: Agent) -> list[Problem]:
    """All of them, each with a stable id."""
    found = [
        *agent.problems.values(),
        *refused(agent.dataplane.backend, agent.dataplane.peers, agent.dataplane.reaches),
        *agent.forwarding.problems,
        *agent.bridge_problems,
        *agent.upkeep.problems,
        *agent.needs,
        *agent.firewall.problems,
        *agent.screened.problems,
    ]
    if agent.underlay is not None and agent.underlay.doubt:
        found.append(Problem("shared-address", agent.underlay.device, agent.underlay.doubt))
    found += as_problem(leftovers(agent))
    explained = {problem.subject for problem in agent.bridge_problems}  # to remove their routes would help nobody
    found += [Problem("shadowing-route", s.row.device, str(s)) for s in agent.report.shadows if s.row.device not in explained]
    found += [Problem("store", agent.settings.store, warning) for warning in (agent.store.warnings if agent.store is not None else ())]
    if agent.fenced:
        found.append(Problem("fenced", agent.owner.node, agent.fenced))
    if agent.membership is not None and agent.membership.kept:
        text = f"lost other nodes' leases together with this node's: these nodes are taken to be there until they write them again, {KEPT_S:g} s at most"
        found.append(Problem("store-emptied", agent.settings.store, text))
    if (away := agent.talk.away_since) is not None:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(away))
        # Without the reason, which may be another one every few seconds, and the log would tell each.
        found.append(Problem("store-away", agent.settings.store, f"does not answer since {since}; forwarding goes on with what is programmed"))
    return found


def leftovers(agent: Agent) -> Leftovers:
    """What a flanneld left here, as the last pass saw it."""
    network = agent.network
    if network is None or not agent.report.foreign:
        return agent.firewall.leftovers
    lengths = {span.network: span.subnet_len for family in (4, 6) if (span := network.range(family)) is not None}
    strays = stray_routes(agent.report.foreign, lengths, own=[e.subnet for e in agent.lease().endpoints])
    if strays:  # of peers they are shadowing routes, which have a problem of their own
        peers = {e.subnet for lease in agent.dataplane.peers.values() for e in lease.endpoints}
        strays = [row for row in strays if row.dst not in peers]
    return msgspec.structs.replace(agent.firewall.leftovers, routes=tuple(strays))


def tell(now: list[Problem], told: set[str]) -> set[str]:
    """Log each problem once when it comes and once when it goes. What is told by now."""
    texts = {str(problem) for problem in now}
    new = sorted(texts - told)
    for text in new[:LOG_ROWS]:
        log.warning("problem: %s", text)
    if len(new) > LOG_ROWS:
        log.warning("problem: %d more of them: tweed status --json has all", len(new) - LOG_ROWS)
    for text in sorted(told - texts)[:LOG_ROWS]:
        log.info("no longer: %s", text)
    return texts
