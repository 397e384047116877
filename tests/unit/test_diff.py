"""diff(want, have), against a slow kernel of four lists, and the order in which changes come."""

from collections import Counter

from tests.oracles.diff import apply
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix
from tweed.model import Change, Failure, FdbEntry, InterfaceAddress, KernelState, Neighbour, Route
from tweed.plan.diff import confirmed, diff, held, split

MACS = [bytes((2, 0, 0, 0, 0, n)) for n in range(4)]
HOSTS = [bytes((192, 0, 2, n)) for n in range(3)]
SUBNETS = [Prefix(bytes((10, 0, n, 0)), 24) for n in range(4)]


def unique(rows, key):
    return tuple({key(r): r for r in rows}.values())


def state_of(choose: Choices, wanted: KernelState | None) -> KernelState:
    """Wanted states have one row per key. What is there may have several, and has rows that are wanted, at times twice."""
    one = choose.one_of

    def rows(make, wanted, key):
        if wanted is None:
            return unique(choose.several(5, make), key)
        return tuple(choose.several(5, lambda: one(wanted) if wanted and choose.flag() else make()))

    addresses = rows(lambda: InterfaceAddress("v", Prefix(one(SUBNETS).address, 32)), wanted and wanted.addresses, lambda x: x.address)
    routes = rows(lambda: Route(one(SUBNETS), "v", one(SUBNETS).address, one((0, 1)), one((3, 83)), True), wanted and wanted.routes, lambda x: x.dst)
    neighbours = rows(lambda: Neighbour(one(SUBNETS).address, "v", one(MACS)), wanted and wanted.neighbours, lambda x: x.address)
    fdb = rows(lambda: FdbEntry(one(MACS), "v", one(HOSTS)), wanted and wanted.fdb, lambda x: x.mac)
    return KernelState(unique(addresses, lambda x: x.address), routes, unique(neighbours, lambda x: x.address), fdb)


@spelled(100)
def pairs(choose: Choices) -> tuple[KernelState, KernelState]:
    """What is wanted, and what is there."""
    want = state_of(choose, None)
    return want, state_of(choose, want)


@cases(33, pairs)
def test_at_most_two_passes_make_the_kernel_as_wanted(pair):
    want, have = pair
    for _ in range(2):  # a replace may overwrite the first of two foreign rows with one key: the second pass sees what is left
        have_rows = apply(have, diff(want, have))
        have = state(have_rows)
    assert Counter(have_rows) == Counter(want.rows)
    assert diff(want, have) == ()


def state(rows) -> KernelState:
    return KernelState(*(tuple(r for r in rows if isinstance(r, kind)) for kind in (InterfaceAddress, Route, Neighbour, FdbEntry)))


@cases(27, pairs)
def test_puts_come_before_deletions_and_both_keep_the_chain_whole(pair):
    want, have = pair
    changes = diff(want, have)
    puts, deletes = split(changes)
    assert puts + deletes == changes
    order = [InterfaceAddress, FdbEntry, Neighbour, Route]
    assert [order.index(type(c.row)) for c in puts] == sorted(order.index(type(c.row)) for c in puts)
    assert [order.index(type(c.row)) for c in deletes] == sorted((order.index(type(c.row)) for c in deletes), reverse=True)


A, B = Prefix.parse("10.0.1.0/24"), Prefix.parse("10.0.2.0/24")
M1, M2 = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))
HOST = bytes((192, 0, 2, 1))


def test_a_changed_vtep_mac_replaces_the_neighbour_before_the_old_fdb_row_goes():
    want = KernelState(neighbours=(Neighbour(A.address, "v", M2),), fdb=(FdbEntry(M2, "v", HOST),))
    have = KernelState(neighbours=(Neighbour(A.address, "v", M1),), fdb=(FdbEntry(M1, "v", HOST),))
    assert [str(c) for c in diff(want, have)] == [
        "bridge fdb replace 02:00:00:00:00:02 dev v dst 192.0.2.1 self permanent",
        "ip neigh replace 10.0.1.0 dev v lladdr 02:00:00:00:00:02 nud permanent",
        "bridge fdb del 02:00:00:00:00:01 dev v dst 192.0.2.1 self",
    ]


def test_a_flannels_row_of_metric_0_goes_after_ours_is_there():
    ours, flannels = Route(A, "v", A.address, 2, onlink=True), Route(A, "v", A.address, 0, 3, True)
    assert diff(KernelState(routes=(ours,)), KernelState(routes=(flannels,))) == (Change("replace", ours), Change("delete", flannels))


def test_a_doubled_row_loses_its_copy_and_is_put_again():
    row = Route(A, "v", A.address, 2, onlink=True)
    assert diff(KernelState(routes=(row,)), KernelState(routes=(row, row))) == (Change("replace", row), Change("delete", row))


def test_an_address_asked_for_without_dad_equals_the_one_that_is_read_back():
    wanted = InterfaceAddress("v", Prefix.parse("fd00::/128"), nodad=True)
    there = InterfaceAddress("v", Prefix.parse("fd00::/128"))
    assert diff(KernelState(addresses=(wanted,)), KernelState(addresses=(there,))) == ()
    assert diff(KernelState(addresses=(wanted,)), KernelState()) == (Change("replace", wanted),)


def test_only_deletions_that_a_second_look_repeats_are_kept():
    put, gone, artefact = Change("replace", FdbEntry(M1, "v", HOST)), Change("delete", FdbEntry(M2, "v", HOST)), Change("delete", Route(A, "v"))
    assert confirmed((put, gone, artefact), (gone,)) == (put, gone)
    assert confirmed((gone, gone), (gone,)) == (gone,)


def test_deletions_wait_for_the_put_that_failed():
    route = Route(A, "v", A.address, 2, onlink=True)
    neighbour = Neighbour(A.address, "v", M2)
    failures = [Failure(Change("replace", row), 1, "no") for row in (route, neighbour)]
    have = KernelState(neighbours=(Neighbour(A.address, "v", M1), Neighbour(B.address, "v", M2)))
    waits = (Change("delete", Route(A, "v", A.address, 0, 3, True)), Change("delete", FdbEntry(M1, "v", HOST)))
    goes = (Change("delete", Route(B, "v", B.address, 0, 3, True)), Change("delete", FdbEntry(M2, "v", HOST)))
    assert held(waits + goes, failures, have) == waits
