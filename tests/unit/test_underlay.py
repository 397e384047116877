"""Which interface carries the overlay: flannel's order (spec/flannel.md 1.6)."""

import msgspec
import pytest

from tweed.addr import Prefix, format_address, parse_address
from tweed.errors import KernelError, UsageError
from tweed.model import InterfaceAddress, Link, Route
from tweed.plan.underlay import (
    DADFAILED,
    DEPRECATED,
    PERMANENT,
    TEMPORARY,
    TENTATIVE,
    Host,
    NoUnderlay,
    Way,
    Wish,
    choose_underlay,
    keep_underlay,
    lost,
    not_demoted,
)

P, A = Prefix.parse, parse_address


def route(device: str, metric: int = 0, default: str = "0.0.0.0/0") -> Route:
    return Route(P(default), device, metric=metric)


HOST = Host(
    links=(Link("lo", 1, mtu=65536), Link("ens33", 2, mtu=1500), Link("ens34", 3, mtu=9000), Link("wlan0", 4, mtu=1400)),
    addresses=(
        InterfaceAddress("lo", P("127.0.0.1/8"), scope=254),
        InterfaceAddress("ens33", P("192.168.2.200/24")),
        InterfaceAddress("ens33", P("192.168.2.250/24")),
        InterfaceAddress("ens33", P("fe80::1/64"), scope=253),
        InterfaceAddress("ens33", P("fd00:192::200/64")),
        InterfaceAddress("ens34", P("169.254.3.3/16"), scope=253),
        InterfaceAddress("ens34", P("10.1.0.5/24")),
        InterfaceAddress("ens34", P("fe80::2/64"), scope=253),
        InterfaceAddress("wlan0", P("172.16.0.7/24")),
    ),
    defaults=(route("wlan0", 600), route("ens33", 100), route("ens34", 200)),
)


def reach(address: bytes) -> Way:
    """What a kernel would answer: by which device, from which address."""
    ways = {
        "10.1.0.9": ("ens34", "10.1.0.5"),
        "8.8.8.8": ("ens33", "192.168.2.250"),
        "2001:db8::8": ("ens33", "fd00:192::200"),
        "10.9.9.9": ("tun0", "10.9.0.1"),
    }
    device, source = ways[format_address(address)]
    return Way(device, A(source))


def choose(families=(4,), host=HOST, **wish):
    return choose_underlay(Wish(families, **wish), host, reach)


# In flannel's order: whatever is above another wins over it.
ORDER = [
    ({"iface": ("ens34",)}, "ens34", "10.1.0.5", "--iface ens34"),
    ({"iface": ("eth0", "wlan0", "ens34")}, "wlan0", "172.16.0.7", "--iface wlan0"),
    ({"iface": ("10.1.0.5",)}, "ens34", "10.1.0.5", "--iface 10.1.0.5"),
    ({"iface": ("ens33",), "iface_regex": ("ens34",), "can_reach": "10.1.0.9", "public_ip": None}, "ens33", "192.168.2.200", "--iface ens33"),
    ({"iface": ("eth0",), "iface_regex": ("ens34",)}, "ens34", "10.1.0.5", "--iface-regex ens34 matches the name"),
    ({"iface_regex": ("^172[.]16",)}, "wlan0", "172.16.0.7", "--iface-regex ^172[.]16 matches an address"),
    ({"iface_regex": ("2",)}, "lo", "127.0.0.1", "--iface-regex 2 matches an address"),
    ({"iface_regex": ("nothing", "^ens")}, "ens33", "192.168.2.200", "--iface-regex ^ens matches the name"),
    ({"iface_regex": ("wlan",), "can_reach": "10.1.0.9"}, "wlan0", "172.16.0.7", "--iface-regex wlan matches the name"),
    ({"can_reach": "10.1.0.9"}, "ens34", "10.1.0.5", "--iface-can-reach 10.1.0.9 is routed there"),
    ({"iface": ("eth0",), "can_reach": "10.1.0.9"}, "ens34", "10.1.0.5", "--iface-can-reach 10.1.0.9 is routed there"),
    ({"public_ip": A("172.16.0.7")}, "wlan0", "172.16.0.7", "--public-ip 172.16.0.7"),
    ({}, "ens33", "192.168.2.200", "the IPv4 default route with metric 100"),
]


@pytest.mark.parametrize(("wish", "device", "local", "why"), ORDER)
def test_flannels_order(wish, device, local, why):
    found = choose(**wish)
    assert (found.device, format_address(found.local), found.why) == (device, local, why)
    assert (found.index, found.mtu) == next((link.index, link.mtu) for link in HOST.links if link.name == device)


def test_addresses_are_matched_before_names():
    """`ens3` of a name, `192` of an address: all addresses of all interfaces come first."""
    host = msgspec.structs.replace(HOST, links=(Link("eth192", 9, mtu=1500), *HOST.links))
    assert choose(host=host, iface_regex=("192",)).device == "ens33"


def test_public_ip_beside_an_interface_is_the_address_and_not_the_choice():
    found, plain = choose(iface=("ens33",), public_ip=A("192.168.2.250")), choose(iface=("ens33",))
    assert (found.device, found.why, found.local) == (plain.device, plain.why, A("192.168.2.250"))
    assert "ens33 192.168.2.200 (lasting)" in found.instead_of


def test_a_global_address_goes_before_a_link_local_one():
    assert format_address(choose(iface=("ens34",)).local) == "10.1.0.5"
    both = choose((4, 6), iface=("ens33",))
    assert (format_address(both.local), format_address(both.local6)) == ("192.168.2.200", "fd00:192::200")


# The newest comes first in the kernel's own order. Flags of `newest`, flags of ::200, and which is taken.
LASTING = [
    (PERMANENT, PERMANENT, "fd00:192::bad"),
    (TEMPORARY | PERMANENT, PERMANENT, "fd00:192::200"),
    (TEMPORARY, 0, "fd00:192::200"),
    (TEMPORARY, DEPRECATED, "fd00:192::bad"),
    (0, PERMANENT, "fd00:192::200"),
    (PERMANENT | DEPRECATED, 0, "fd00:192::200"),
    (PERMANENT | TENTATIVE, 0, "fd00:192::200"),
    (PERMANENT | DADFAILED, DEPRECATED | TEMPORARY, "fd00:192::200"),
    (PERMANENT, PERMANENT | DADFAILED, "fd00:192::bad"),
]


@pytest.mark.parametrize(("newest", "other", "taken"), LASTING)
def test_a_lasting_address_goes_before_a_fleeting_one(newest, other, taken):
    addresses = (InterfaceAddress("ens33", P("fd00:192::bad/64")), *HOST.addresses)
    host = msgspec.structs.replace(HOST, addresses=addresses, flags={A("fd00:192::bad"): newest, A("fd00:192::200"): other})
    assert format_address(choose((4, 6), host, iface=("ens33",)).local6) == taken


def test_an_ipv4_address_is_not_less_for_being_a_secondary_one():
    """The bit that says "temporary" of an IPv6 address."""
    host = msgspec.structs.replace(HOST, flags={A("192.168.2.200"): PERMANENT | TEMPORARY, A("192.168.2.250"): PERMANENT})
    assert format_address(choose(host=host, iface=("ens33",)).local) == "192.168.2.200"
    leased = msgspec.structs.replace(HOST, flags={A("192.168.2.200"): 0, A("192.168.2.250"): PERMANENT})
    assert format_address(choose(host=leased, iface=("ens33",)).local) == "192.168.2.250"


def test_the_address_that_a_wish_names_is_the_one_that_is_used():
    assert format_address(choose(iface=("192.168.2.250",)).local) == "192.168.2.250"
    assert format_address(choose(iface_regex=("[.]250$",)).local) == "192.168.2.250"
    assert format_address(choose(can_reach="8.8.8.8").local) == "192.168.2.250"
    both = choose((4, 6), iface=("fd00:192::200",))
    assert (format_address(both.local), format_address(both.local6)) == ("192.168.2.200", "fd00:192::200")


def test_an_ipv6_target_finds_the_interface_of_an_ipv4_overlay():
    found = choose((4,), can_reach="2001:db8::8")
    assert (found.device, format_address(found.local), found.local6) == ("ens33", "192.168.2.200", None)
    assert format_address(choose((4, 6), can_reach="2001:db8::8").local6) == "fd00:192::200"


def test_a_target_of_our_own_names_the_interface_that_has_it():
    found = choose(can_reach="10.1.0.5")
    assert (found.device, found.why) == ("ens34", "--iface-can-reach 10.1.0.5 is its own address")


def test_an_expression_is_not_matched_against_a_family_that_is_off():
    with pytest.raises(NoUnderlay, match="no interface matches"):
        choose(iface_regex=("^fd00",))


def test_of_default_routes_the_first_whose_interface_has_both_families():
    host = msgspec.structs.replace(HOST, defaults=(route("wlan0", 50), route("ens34", 60), *HOST.defaults, route("ens33", 900, "::/0")))
    assert choose((4, 6), host).device == "ens34" and format_address(choose((4, 6), host).local6) == "fe80::2"
    bare = tuple(a for a in HOST.addresses if a.address.family == 4)
    with pytest.raises(NoUnderlay, match=r"wlan0 .the IPv4 default route with metric 50. has no IPv6 address"):
        choose((4, 6), msgspec.structs.replace(host, addresses=bare))


def test_what_was_not_chosen_is_told_with_the_reason():
    host = msgspec.structs.replace(HOST, flags={A("172.16.0.7"): 0, A("10.1.0.5"): PERMANENT | DEPRECATED})
    assert choose(host=host).instead_of == (
        "ens33 192.168.2.250 (lasting)",
        "ens34 10.1.0.5 (deprecated, default route with metric 200)",
        "wlan0 172.16.0.7 (dynamic, default route with metric 600)",
    )
    assert "ens34 10.1.0.5 (lasting, no default route)" in choose(host=msgspec.structs.replace(HOST, defaults=(route("wlan0"),))).instead_of


def test_addresses_of_the_overlay_itself_are_not_told():
    assert [line.split()[1] for line in choose(overlay=(P("10.1.0.0/16"),)).instead_of] == ["192.168.2.250", "172.16.0.7"]


def test_the_address_that_every_virtual_machine_has_is_doubted_unless_it_was_asked_for():
    host = msgspec.structs.replace(HOST, addresses=(InterfaceAddress("ens33", P("10.0.2.15/24")), *HOST.addresses))
    assert choose(host=host).doubt.startswith("10.0.2.15 is what VirtualBox and QEMU give every guest")
    assert choose(host=host, iface=("ens33",)).doubt == "" and choose().doubt == ""


def test_the_default_route_with_the_lowest_metric():
    host = msgspec.structs.replace(HOST, defaults=(route("ens34"), *HOST.defaults))
    assert choose(host=host).device == "ens34"
    gone = msgspec.structs.replace(HOST, defaults=(route("ppp0"), route("wlan0", 600)))
    assert choose(host=gone).device == "wlan0"  # a default route through a device of ours, or one that has just gone


def test_ipv6_alone_follows_the_ipv6_default_route():
    host = msgspec.structs.replace(HOST, defaults=(route("wlan0"), route("ens33", 1024, "::/0")))
    found = choose((6,), host)
    assert (found.device, found.local, format_address(found.local6), found.why) == ("ens33", None, "fd00:192::200", "the IPv6 default route")


NONE = [
    ({"iface": ("eth0",)}, "no interface matches --iface eth0; there are: lo, ens33, ens34, wlan0"),
    ({"iface_regex": ("^br",), "iface": ("eth7",)}, "no interface matches --iface eth7, --iface-regex ^br; there are:"),
    ({"public_ip": A("1.2.3.4")}, "--public-ip 1.2.3.4: no interface has this address"),
    ({"iface": ("ens33",), "public_ip": A("1.2.3.4")}, "--public-ip 1.2.3.4 is not an address of this host"),
    ({"public_ip": A("1.2.3.4"), "said": ("annotation node-public-ip", "")}, "annotation node-public-ip 1.2.3.4: no interface has this address"),
    ({"families": (4, 6), "iface": ("wlan0",)}, "interface wlan0 (--iface wlan0) has no IPv6 address"),
    ({"families": (4, 6), "public_ip6": A("fd00::9"), "iface": ("ens33",)}, "--public-ipv6 fd00::9 is not an address of this host"),
    ({"families": (6,)}, "no default route: name the interface that reaches the other nodes with --iface"),
]


@pytest.mark.parametrize(("wish", "text"), NONE)
def test_nothing_fits_yet(wish, text):
    with pytest.raises(NoUnderlay) as caught:
        choose(**wish)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_no_interface_and_no_mtu():
    with pytest.raises(NoUnderlay, match="no default route"):
        choose(host=Host((), (), ()))
    with pytest.raises(NoUnderlay, match="there are: none"):
        choose(host=Host((), (), ()), iface=("ens33",))
    with pytest.raises(NoUnderlay, match="MTU 0"):
        choose(host=msgspec.structs.replace(HOST, links=(Link("ens33", 2, mtu=0),)), iface=("ens33",))


@pytest.mark.parametrize("wish", [{"iface_regex": ("(",)}, {"can_reach": "nowhere"}])
def test_what_can_never_work_is_a_usage_error(wish):
    with pytest.raises(UsageError):
        choose(**wish)


def test_an_unreachable_address_is_the_kernels_word():
    def unreachable(address: bytes) -> Way:
        raise KernelError("ip route get", 101, "Network is unreachable")

    with pytest.raises(KernelError, match="unreachable"):
        choose_underlay(Wish((4,), can_reach="8.8.8.8"), HOST, unreachable)


def test_what_comes_later_does_not_move_a_node():
    now = choose((4, 6), iface=("ens33",))
    newer = (InterfaceAddress("ens33", P("2001:db8::77/64")), InterfaceAddress("ens33", P("192.168.2.9/24")), *HOST.addresses)
    busier = msgspec.structs.replace(HOST, addresses=newer, defaults=(route("tun0"), route("ens34"), *HOST.defaults))
    assert keep_underlay(now, busier) == now
    renamed = (Link("wan0", 2, mtu=1500), Link("ens33", 77, mtu=1500), *HOST.links[2:])
    moved = tuple(msgspec.structs.replace(a, device="wan0") if a.device == "ens33" else a for a in newer)
    assert keep_underlay(now, msgspec.structs.replace(busier, links=renamed, addresses=moved)) == msgspec.structs.replace(now, device="wan0")
    anew = (Link("ens33", 12, mtu=1400), *HOST.links[2:])
    assert keep_underlay(now, msgspec.structs.replace(busier, links=anew)) == msgspec.structs.replace(now, index=12, mtu=1400)


@pytest.mark.parametrize("gone", ["192.168.2.200/24", "fd00:192::200/64"])
def test_a_device_or_an_address_that_is_gone_is_chosen_anew(gone):
    now = choose((4, 6), iface=("ens33",))
    left = tuple(a for a in HOST.addresses if a.address != P(gone))
    assert len(left) == len(HOST.addresses) - 1
    assert keep_underlay(now, msgspec.structs.replace(HOST, addresses=left)) is None
    assert keep_underlay(now, msgspec.structs.replace(HOST, links=HOST.links[:1])) is None


def test_an_address_that_moved_to_a_bridge_is_gone_unless_it_may_be_anywhere():
    now = choose(iface=("ens33",))
    moved = tuple(msgspec.structs.replace(a, device="br0") if a.device == "ens33" else a for a in HOST.addresses)
    bridged = msgspec.structs.replace(HOST, links=(*HOST.links, Link("br0", 9, mtu=1500)), addresses=moved)
    assert keep_underlay(now, bridged) is None
    assert keep_underlay(now, bridged, {A("192.168.2.200")}) == now


def test_a_family_that_has_only_a_link_local_address_left_keeps_what_others_know():
    """The kernel drops IPv6 addresses when a link is set down."""
    now = choose((4, 6), iface=("ens33",))
    left = tuple(a for a in HOST.addresses if a.address not in (P("fd00:192::200/64"), P("192.168.2.200/24")))
    host = msgspec.structs.replace(HOST, addresses=left)
    assert keep_underlay(now, host) is None
    chosen = choose_underlay(Wish((4, 6), iface=("ens33",)), host, reach)
    assert (chosen.local, chosen.local6) == (A("192.168.2.250"), A("fe80::1"))
    followed = not_demoted(now, chosen)
    assert (followed.local, followed.local6) == (A("192.168.2.250"), A("fd00:192::200"))  # IPv4 goes on with the other global one
    assert lost(followed, host) == "ens33 has lost fd00:192::200, by which other nodes know this one: give it back"
    assert lost(now, HOST) == "" and lost(chosen, host) == ""
    assert not_demoted(chosen, chosen) == chosen  # who had nothing better goes on with it
    assert not_demoted(msgspec.structs.replace(now, local6=None), chosen).local6 == A("fe80::1")


def test_a_link_local_address_gives_way():
    now = msgspec.structs.replace(choose((4, 6), iface=("ens33",)), local6=A("fe80::1"))
    assert keep_underlay(now, HOST) is None
