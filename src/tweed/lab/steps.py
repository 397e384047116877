"""The four look-ups that carry one packet from a pod to a pod of another node, each asked of the kernel at this moment.

    1  where does a packet for this container go?   route            gateway and VTEP device
    2  which VTEP MAC is behind that gateway?       neighbour        inner Ethernet destination
    3  which host owns that VTEP MAC?               fdb              outer IP destination
    4  how is that host reached?                    route, neighbour device, outer Ethernet destination

No table is dumped and nothing is evaluated here: the kernel names the row that decides. A row that is missing is shown as missing,
with what the kernel then does.
"""

from __future__ import annotations

import msgspec

from tweed.addr import format_address, format_mac
from tweed.errors import KernelError
from tweed.kernel import links
from tweed.kernel.netlink import Netlink
from tweed.kernel.tables import lookup_fdb, lookup_neighbour, lookup_route
from tweed.model import NUD_FAILED, NUD_INCOMPLETE, NUD_NAMES, TABLE_LOCAL, TYPE_NAMES, Neighbour, Route, Row

UNICAST, LOCAL = 1, 2
ANY_MAC = bytes(6)  # the fdb row of a VXLAN device for every MAC that has none of its own


class Step(msgspec.Struct, frozen=True):
    """One look-up. `command` asks the same at a prompt, "" when the steps before left nothing to ask.

    `row` None: there is none. `value` is what the row decides, as it will stand in the packet: an address or a MAC; None when nothing is.
    """

    number: int
    question: str
    command: str
    row: Row | None
    answer: str
    value: bytes | None = None


def four_steps(nl: Netlink, dst: bytes, *, src: bytes | None = None, iif: str | None = None) -> tuple[Step, ...]:
    """The steps for a packet to `dst`, in order; the fourth is two rows, so five in all. Never raises for what a table lacks.

    With `iif` (the bridge) and `src` the kernel is asked as for a packet of that container, which it forwards; else as for one of its own.
    """
    question = f"where does a packet for {format_address(dst)} go?"
    command, route, refusal = route_to(nl, dst, src, iif)
    if route is None:
        first = Step(1, question, command, None, f"no route: {refusal}; the packet is dropped")
        return first, *(unasked(number, "the packet goes nowhere") for number in (2, 3, 4, 4))
    device = links.link(nl, route.device) if route.device else None
    vxlan = device.vxlan if device is not None else None
    if route.type != UNICAST or device is None or vxlan is None:
        first = Step(1, question, command, route, f"{way(route, dst)}: not through the overlay", route.gateway)
        direct = not_delivered(route)
        why = direct or f"{route.device} is no VXLAN device"
        fourth = (unasked(4, why), unasked(4, why)) if direct else underlay(nl, dst, src, iif)
        return first, unasked(2, why), unasked(3, why), *fourth

    gateway = route.gateway or dst
    first = Step(1, question, command, route, f"gateway {format_address(gateway)} on {route.device}", gateway)
    second = vtep(nl, gateway, route.device)
    if second.value is None:
        return first, second, *(unasked(number, "there is no VTEP MAC to look for") for number in (3, 4, 4))
    third = host(nl, second.value, route.device)
    if third.value is None:
        return first, second, third, *(unasked(4, "there is no host to reach") for _ in range(2))
    return first, second, third, *underlay(nl, third.value, vxlan.local, None)


def vtep(nl: Netlink, gateway: bytes, device: str) -> Step:
    question = f"which VTEP MAC is behind {format_address(gateway)}?"
    command = f"ip neigh get {format_address(gateway)} dev {device}"
    row = lookup_neighbour(nl, gateway, device)
    if row is None:
        return Step(2, question, command, None, "no row: the kernel asks through the tunnel, where nobody answers; the packet is dropped")
    mac = usable(row)
    answer = f"VTEP {format_mac(mac)}: the inner Ethernet destination" if mac else f"{state(row)}: no MAC, the packet is dropped"
    return Step(2, question, command, row, answer, mac)


def host(nl: Netlink, mac: bytes, device: str) -> Step:
    question = f"which host owns {format_mac(mac)}?"
    command = f"bridge fdb get {format_mac(mac)} dev {device} self"
    row = lookup_fdb(nl, mac, device)
    default = ""
    if row is None and (row := lookup_fdb(nl, ANY_MAC, device)) is not None:
        command = f"bridge fdb get {format_mac(ANY_MAC)} dev {device} self"
        default = ", by the entry for unknown MACs"
    if row is None:
        return Step(3, question, command, None, f"no row: {device} does not know where to send the frame and drops it")
    if row.dst is None:
        return Step(3, question, command, row, "the row names no host")
    return Step(3, question, command, row, f"host {format_address(row.dst)}: the outer IP destination{default}", row.dst)


def underlay(nl: Netlink, address: bytes, src: bytes | None, iif: str | None) -> tuple[Step, Step]:
    """Both halves of step 4: the route to `address`, and the MAC of the next hop. `iif`: asked as for a forwarded packet."""
    question = f"how is {format_address(address)} reached?"
    command, route, refusal = route_to(nl, address, src, iif)
    if route is None:
        return Step(4, question, command, None, f"no route: {refusal}; the packet is dropped"), unasked(4, "there is no device to leave by")
    if (end := not_delivered(route)) is not None:
        return Step(4, question, command, route, end), unasked(4, end)
    hop = route.gateway or address
    first = Step(4, question, command, route, way(route, address), hop)
    question = f"which MAC has {format_address(hop)}?"
    command = f"ip neigh get {format_address(hop)} dev {route.device}"
    row = lookup_neighbour(nl, hop, route.device)
    if row is None:
        return first, Step(4, question, command, None, "not known yet: the first packet asks for it")
    mac = usable(row)
    answer = f"MAC {format_mac(mac)}: the outer Ethernet destination" if mac else f"{state(row)}: nobody answers for it, the packet is dropped"
    return first, Step(4, question, command, row, answer, mac)


def route_to(nl: Netlink, dst: bytes, src: bytes | None, iif: str | None) -> tuple[str, Route | None, str]:
    """The command that asks, the route that wins, and without one the kernel's reason."""
    words = ["ip", *(["-6"] if len(dst) == 16 else []), "route get fibmatch", format_address(dst)]
    words += ["from", format_address(src)] if src is not None else []
    words += ["iif", iif] if iif is not None else []
    command = " ".join(words)
    try:
        return command, lookup_route(nl, dst, src=src, iif=iif), ""
    except KernelError as error:
        return command, None, error.text


def unasked(number: int, why: str) -> Step:
    return Step(number, {2: "which VTEP MAC?", 3: "which host?", 4: "how is it reached?"}[number], "", None, f"not asked: {why}")


def not_delivered(route: Route) -> str | None:
    """What becomes of a packet that this route does not send anywhere; None when it does."""
    if route.type == LOCAL or route.table == TABLE_LOCAL:
        return "it is this node itself"
    return None if route.type == UNICAST else f"a {TYPE_NAMES.get(route.type, route.type)} route drops the packet"


def way(route: Route, dst: bytes) -> str:
    if (end := not_delivered(route)) is not None:
        return end
    return f"by {route.device} to {format_address(route.gateway)}" if route.gateway else f"by {route.device}, straight to {format_address(dst)}"


def usable(row: Neighbour) -> bytes | None:
    """The MAC that the kernel would write on a frame now."""
    return None if row.state & (NUD_FAILED | NUD_INCOMPLETE) else row.mac


def state(row: Neighbour) -> str:
    return NUD_NAMES.get(row.state, hex(row.state))
