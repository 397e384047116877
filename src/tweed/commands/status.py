"""`tweed status`: the agent's document, for people."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from tweed.agent.client import call
from tweed.commands.common import agent_socket, json_option, print_json, socket_option
from tweed.commands.lease import duration
from tweed.commands.pods import lines as pod_lines

SHOWN = 20


@click.command()
@json_option
@socket_option
def status(as_json: bool, socket_path: Path | None) -> None:
    """What this node's agent holds, programmed and failed at. Exit 0 when ready and nothing is wrong, else 1."""
    document = call(agent_socket(socket_path), "GET", "/v1/status")
    if as_json:
        print_json(document)
    else:
        for line in lines(document):
            click.echo(line)
    if not document["ready"] or document["problems"] or document["failures"]:
        sys.exit(1)


def lines(d: dict[str, Any]) -> list[str]:
    """The text; colours are dropped by click when it is piped."""
    good = click.style("ready", fg="green") if d["ready"] else click.style("not ready", fg="red")
    out = [f"node       {d['node']}: {good}{', ' + click.style('paused', fg='yellow') if d['paused'] else ''}{': ' + d['reason'] if d['reason'] else ''}"]
    lease = d["lease"]
    if lease is not None:
        subnets = " and ".join(s for s in (d["subnet"], d["subnet6"]) if s)
        left = lease["expires_in_s"]
        ends = (
            "a reservation, never ends"
            if lease["reservation"]
            else "has no end of its own"
            if left is None
            else f"renewed in time, ends in {duration(max(left, 0))}"
        )
        out.append(f"lease      {subnets} ({ends})")
    if d["underlay"] is not None:
        u = d["underlay"]
        addresses = " and ".join(a for a in (d["public_ip"], d["public_ip6"]) if a)
        out.append(f"underlay   {u['device']} {addresses}, MTU {u['mtu']}, chosen because of {u['why']}")
        out += [f"           not {other}" for other in u["instead_of"][:SHOWN]]
    if d["network"] is not None and d["mtu"] is not None:
        direct = d["network"]["direct_routing"]
        fits = ", which fits the tunnel too" if direct else ""
        out.append(f"backend    {d['network']['backend']}{' with DirectRouting' if direct else ''}, MTU {d['mtu']} for pods{fits}")
    for v in d["devices"]:
        failure = click.style(f" {v['failure']}", fg="red") if v["failure"] else ""
        vtep = f"{v['mac']} " if v["mac"] else ""
        vni = f"VNI {v['vni']}, " if v["vni"] is not None else ""
        out.append(f"device     {v['name']} {vtep}{v['address']}, {vni}UDP port {v['port']}, MTU {v['mtu']}{failure}")
    if (f := d["forwarding"]) is not None:
        out.append(f"process    {f['pid']}: data path {f['data_path']}; {f['mtu']}")
        out += [f"           without {name}: {state}" for name, state in f["offloads"].items() if state != "on"]
        out += [f"           no bursts to {host}: {why}" for host, why in list(f["segmenting_off"].items())[:SHOWN]]
    store = d["store"]
    away = f", away since {store['away_since']}: {store['away_why']}" if store["away_since"] else ", not open"
    out.append(f"store      {store['url']}{'' if store['answers'] else click.style(away, fg='red')}")
    firewall = d["firewall"]
    out.append(f"firewall   masquerade {'on' if firewall['masquerade'] else 'off'}, forwarding {firewall['forwarding']}")
    r = d["reconcile"]
    if r["last"]:
        out.append(f"reconcile  last {r['last']} because of {r['reason']}: {r['changes']} changes in {r['duration_ms']:.1f} ms")
        out.append(f"           {r['passes']} passes, {r['repairs']} repairs since {d['started']}")
    out.append(f"pods       {d['pods']}")
    attachments = d.get("attachments", [])
    out += [f"  {line}" for line in pod_lines(attachments[:SHOWN], time.time())] if attachments else []
    if len(attachments) > SHOWN:
        out.append(f"  and {len(attachments) - SHOWN} more: tweed pods shows all")
    out.append(f"encryption {d['encryption']}")
    peers = [p for p in d["peers"] if p["state"] != "reserved"]
    out.append(f"peers      {sum(p['state'] == 'programmed' for p in peers)} of {len(peers)} programmed")
    # Trouble first, so that it is not lost in a long list.
    for peer in sorted(peers, key=lambda p: p["state"] == "programmed")[:SHOWN]:
        colour = "green" if peer["state"] == "programmed" else "red"
        out.append(f"  {click.style(peer['state'], fg=colour)} {peer['node'] or peer['key']}{': ' + peer['why'] if peer['why'] else ''}")
        out += [f"    {e['way']}" for e in peer["endpoints"] if e["way"]]
        out += [f"    {row}" for row in peer["rows"]]
    if len(peers) > SHOWN:
        out.append(f"  and {len(peers) - SHOWN} more: tweed status --json shows all")
    for word, said in (
        ("problem", [f"{p['subject']}: {p['text']}" for p in d["problems"]]),
        ("refused", [f"{f['command'] or 'device'}: {f['text']}" for f in d["failures"]]),
    ):
        out += [click.style(word, fg="red") + f"    {text}" for text in said[:SHOWN]]
        if len(said) > SHOWN:
            out.append(click.style(word, fg="red") + f"    and {len(said) - SHOWN} more: tweed status --json shows all")
    return out
