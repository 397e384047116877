"""`--iptables-forward-rules`: who drops the overlay's forwarded traffic, and what is done about it.

Every base chain at the forward hook judges every forwarded packet, in order of priority. An accept ends only the chain it
stands in; a drop anywhere is final. So no rule of ours in a table of ours could ever open another table's drop (flannel's
`forward` chain in nftables mode tries), and each chain that drops has to be opened in its own place:

* iptables' filter FORWARD (Docker sets its policy to DROP): two accept rules with our comment, at the head of the chain,
  in `DOCKER-USER` where FORWARD leads there. Rules that drop a part only (a network policy, a blocked port) keep
  their effect: ours then go right behind them.
* any other chain (firewalld, somebody's nft rules) is left alone and named, with the command that opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from tweed.addr import Prefix
from tweed.plan import iptables_chains, nft_chains
from tweed.plan.filters import Drop, Path, Share, walk
from tweed.plan.iptables_chains import Filter
from tweed.plan.nft_chains import BaseChain, Object

COMMENT = "tweed forward"
# flanneld's, on its chain FLANNEL-FWD and on the jump to it.
FLANNEL_COMMENT = "flanneld forward"
FORWARD = "FORWARD"
# Docker's place for everybody else's rules (docs.docker.com, "Docker and iptables").
DOCKER_USER = "DOCKER-USER"
ADDRESS_WORD = {4: "ip", 6: "ip6"}


class Overlay(msgspec.Struct, frozen=True):
    """One family's traffic on this node: containers of `subnet` behind device `bridge` (cni0), the rest of `network` behind `vtep`."""

    network: Prefix
    subnet: Prefix
    bridge: str
    vtep: str

    @property
    def family(self) -> int:
        return self.network.family

    @property
    def paths(self) -> tuple[Path, Path]:
        return Path(self.bridge, self.vtep, self.subnet, self.network), Path(self.vtep, self.bridge, self.network, self.subnet)


class Saved(msgspec.Struct, frozen=True):
    """What `PROGRAM-save -t filter` printed. `legacy`: written to the kernel's old tables, of which nft knows nothing.

    `exact` False: somebody put native nft rules into the table, which iptables prints as something else. Then it is fit for
    finding our own rules, and not for judging by.
    """

    program: str
    family: int
    legacy: bool
    text: str
    exact: bool = True


class Edit(msgspec.Struct, frozen=True):
    """One rule put in or taken out. Prints as the command; all edits of a program and table are made in one transaction."""

    program: str
    line: str
    table: str = "filter"

    def __str__(self) -> str:
        return f"{self.program} -w {'' if self.table == 'filter' else f'-t {self.table} '}{self.line}"


class Obstacle(msgspec.Struct, frozen=True):
    """A chain that drops overlay traffic and is not ours to change.

    `certain` False: it drops a part of the traffic, or has rules that tweed cannot read. `command` opens it.
    """

    family: str
    table: str
    chain: str
    why: str
    command: str
    certain: bool

    def __str__(self) -> str:
        verb = "drops" if self.certain else "may drop some"
        return f"table {self.family} {self.table} chain {self.chain} {verb} forwarded overlay traffic: {self.why}; to open it: {self.command}"


class Decision(msgspec.Struct, frozen=True):
    """`edits`: from what iptables holds to what it should; empty when all is right."""

    edits: tuple[Edit, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()


def comment(vni: int) -> str:
    """The comment on our rules; agents of other VNIs on the machine have another."""
    return f"{COMMENT} {vni}"


def decide(listing: Sequence[Object], overlays: Sequence[Overlay], saved: Sequence[Saved] = (), *, vni: int) -> Decision:
    """What to change in iptables, and what stands in the way elsewhere.

    `listing`: nft's JSON objects of the tables with a forward chain (`kernel.nft.forward_listing`); `saved`: what iptables
    printed (`kernel.iptables.read`). A filter FORWARD chain for which no exact `saved` is given counts as anybody's nft chain.
    """
    saved = [one for one in saved if one.exact]
    edits: list[Edit] = []
    obstacles: list[Obstacle] = []
    for one in saved:
        mine = [overlay for overlay in overlays if overlay.family == one.family]
        done, blocked = _iptables(one, mine, comment(vni))
        edits += done
        obstacles += blocked
    known = {(ADDRESS_WORD[one.family], "filter", FORWARD) for one in saved if not one.legacy}
    for base in nft_chains.forward_hooks(listing):
        if (base.family, base.table, base.name) not in known:
            obstacles += _native(listing, base, overlays)
    return Decision(tuple(edits), tuple(dict.fromkeys(obstacles)))


def removal(saved: Iterable[Saved], vni: int) -> tuple[Edit, ...]:
    """What takes exactly our rules out again."""
    return tuple(edit for one in saved for edit in _deletions(one.program, iptables_chains.parse(one.text), comment(vni)))


# ---- iptables ---------------------------------------------------------------------------------------------------


def _iptables(saved: Saved, overlays: Sequence[Overlay], tag: str) -> tuple[list[Edit], list[Obstacle]]:
    whole = iptables_chains.parse(saved.text)
    have = whole.without(FLANNEL_COMMENT)  # a flanneld that has left opens nothing for long: tweed cleanup --flannel must not close the chain
    bare = want = have.without(tag)
    edits: list[Edit] = []
    obstacles: list[Obstacle] = []
    opened: list[tuple[Overlay, list[Drop]]] = []
    for overlay in overlays:
        drops = _meets(bare, overlay)
        if opened and drops and _opens(want, overlay, drops):  # by the same rules as another device of the same network
            opened.append((overlay, drops))
            continue
        lines = _lines(overlay, tag)
        place = _place(want, overlay, drops, lines) if any(drop.share is Share.ALL for drop in drops) else None
        if place is not None:
            chain, position = place
            number = 1 + position + _flannels(whole.without(tag).rules[chain], position)
            want = want.inserted(chain, position, lines)
            edits += [Edit(saved.program, f"-I {chain} {number + n} {line}") for n, line in enumerate(lines)]
            opened.append((overlay, drops))
        elif drops:
            network = overlay.network.network
            drop = _worst(drops)
            command = f"{saved.program} -w -I {FORWARD} 1 -s {network} -d {network} -j ACCEPT"
            obstacles.append(Obstacle(ADDRESS_WORD[saved.family], "filter", FORWARD, _why(drop, repr), command, drop.certain))
    # Where exactly they stand does not matter while they have their effect: others who want the head may have it.
    in_place = _tagged(have, tag) == _tagged(want, tag) and all(_opens(have, overlay, drops) for overlay, drops in opened)
    return [] if in_place else [*_deletions(saved.program, have, tag), *edits], obstacles


def _flannels(rules: Sequence[str], position: int) -> int:
    """How many of flanneld's rules stand among the first `position` rules of others."""
    found = 0
    for rule in rules:
        if position == 0:
            break
        if iptables_chains.has_comment(rule, FLANNEL_COMMENT):
            found += 1
        else:
            position -= 1
    return found


def _tagged(table: Filter, tag: str) -> dict[str, list[str]]:
    """Our rules by chain, in no particular order."""
    return {chain: mine for chain, rules in table.rules.items() if (mine := sorted(r for r in rules if iptables_chains.has_comment(r, tag)))}


def _lines(overlay: Overlay, tag: str) -> tuple[str, ...]:
    """Our two rules, as iptables-save will print them."""
    return tuple(f'{option} {overlay.network.network} -m comment --comment "{tag}" -j ACCEPT' for option in ("-s", "-d"))


def _deletions(program: str, table: Filter, tag: str) -> list[Edit]:
    return [Edit(program, f"-D {chain} {rule}") for chain, rules in table.rules.items() for rule in rules if iptables_chains.has_comment(rule, tag)]


def _meets(table: Filter, overlay: Overlay) -> list[Drop]:
    """Every drop in FORWARD that the overlay's traffic meets, in either direction."""
    return [drop for path in overlay.paths for drop in walk(iptables_chains.chains(table, path), FORWARD)]


def _opens(table: Filter, overlay: Overlay, before: Sequence[Drop]) -> bool:
    """True when nothing drops all traffic any more, and everything that dropped a part of it before still does."""
    now = _meets(table, overlay)
    partial = {(d.chain, d.rule) for d in before if d.share is not Share.ALL}
    return all(d.share is not Share.ALL for d in now) and partial <= {(d.chain, d.rule) for d in now}


def _place(table: Filter, overlay: Overlay, drops: Sequence[Drop], lines: tuple[str, ...]) -> tuple[str, int] | None:
    """The first place where `lines` open FORWARD without disarming a rule that drops a part: chain, and index in it."""
    for chain in dict.fromkeys([DOCKER_USER, FORWARD, *(drop.chain for drop in drops if drop.share is Share.ALL)]):
        for position in range(len(table.rules.get(chain, ())) + 1):
            if chain in table.rules and _opens(table.inserted(chain, position, lines), overlay, drops):
                return chain, position
    return None


# ---- everybody else's nftables ----------------------------------------------------------------------------------


def _native(listing: Sequence[Object], base: BaseChain, overlays: Sequence[Overlay]) -> list[Obstacle]:
    found = []
    for overlay in overlays:
        if base.family not in (ADDRESS_WORD[overlay.family], "inet"):
            continue
        drops = [d for path in overlay.paths for d in walk(nft_chains.table_chains(listing, base.family, base.table, path), base.name)]
        if drops:
            drop = _worst(drops)
            why = _why(drop, lambda rule: f"{rule} (nft -a list table {base.family} {base.table})")
            found.append(Obstacle(base.family, base.table, base.name, why, _opening(base, overlay), drop.certain))
    return found


def _opening(base: BaseChain, overlay: Overlay) -> str:
    """The command that lets the overlay's own traffic, and nothing else, through one base chain."""
    network = overlay.network.network
    if base.table == "firewalld":
        # It rewrites its table at every reload, so the rule has to be its own.
        return f"firewall-cmd --permanent --zone=trusted --add-source={network} && firewall-cmd --reload"
    word = ADDRESS_WORD[overlay.family]
    return f"nft insert rule {base.family} {base.table} {base.name} {word} saddr {network} {word} daddr {network} accept"


def _worst(drops: Sequence[Drop]) -> Drop:
    """The drop to name: a certain one, else one that drops all, else the first."""
    return max(drops, key=lambda d: (d.certain, d.share is Share.ALL))


def _why(drop: Drop, describe: Callable[[str], str]) -> str:
    if drop.rule is not None:
        return f"rule {describe(drop.rule)} of chain {drop.chain} drops {'it' if drop.share is Share.ALL else 'a part of it'}"
    if drop.certain:
        return "its policy is drop"
    return "its policy is drop, and no rule that tweed can read accepts " + ("the traffic before" if drop.share is Share.ALL else "all of the traffic before")
