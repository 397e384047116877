"""10,000 leases into an empty kernel, and a look at them when nothing changed.

Ours: the agent's own `Dataplane.look()`: dumps, wanted rows, difference, encoding, sending, answers. The floor: the same messages,
packed beforehand, sent by one loop that waits until the kernel is done. The floor of a look: the same dumps, unread.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from bench.common import Node, Sample, circumstances, lease, nodes, ratio, spread, table, timed
from bench.overlay import Overlay
from tweed.model import Route

LEASES, ROUNDS = 10_000, 10


def main() -> None:
    with circumstances(f"{LEASES:,} leases into an empty kernel, median (least … most) of {ROUNDS} rounds"):
        for family in (4, 6):
            with nodes(1) as (node,):
                one_family(node, family)


def one_family(node: Node, family: int) -> None:
    overlay = Overlay(node, family)
    dataplane = overlay.dataplane
    peers = {each.key: each for each in (lease(number, family) for number in range(LEASES))}
    more = peers | {(new := lease(LEASES, family)).key: new}
    changes = overlay.changes(list(peers.values()))

    def program() -> Sample:
        overlay.empty()
        dataplane.peers = peers
        took = timed(dataplane.look)
        assert len(dataplane.want()) == 1 + len(changes) and not dataplane.look().changes
        return took

    def send_packed() -> Sample:
        overlay.empty()
        return overlay.send_packed(changes)

    messages: list[Sample] = []
    ours: list[Sample] = []
    dumps: list[Sample] = []
    look: list[Sample] = []
    one: list[Sample] = []
    for number in range(ROUNDS):
        if number % 2:  # each comes first as often as the other
            messages.append(send_packed())
        ours.append(program())
        dumps.append(timed(overlay.dump))
        look.append(timed(dataplane.look))
        one.append(timed(lambda: dataplane.change(more, {new.key})))
        if not number % 2:
            messages.append(send_packed())
    print(f"IPv{family}")
    rows = [
        line("the messages alone (floor)", messages, messages),
        line("look(): empty kernel to 10,000", ours, messages),
        line("the dumps alone (floor)", dumps, dumps),
        line("look(): nothing changed", look, dumps),
        line("change(): one lease among them", one, None),
    ]
    if family == 4:
        overlay.empty()
        plain = overlay.send_packed(tuple(replace(c, row=replace(c.row, metric=0)) if isinstance(c.row, Route) else c for c in changes))
        rows.append(line("the messages without metrics, once", [plain], None))
    table(("", "wall, ms", "CPU, ms", "wall over floor", "CPU over floor"), rows)
    overlay.nl.close()


def line(name: str, samples: Sequence[Sample], floor: Sequence[Sample] | None) -> tuple[str, ...]:
    wall, cpu = zip(*samples, strict=True)
    over = [ratio(mine, least) for mine, least in zip((wall, cpu), zip(*floor, strict=True), strict=True)] if floor else ["", ""]
    return name, spread(wall, 1000), spread(cpu, 1000), *over


if __name__ == "__main__":
    main()
