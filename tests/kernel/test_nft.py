"""The way to nftables itself: both back ends, errors, and being told of changes."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.overlay import Space

from tweed.addr import Prefix
from tweed.errors import KernelError
from tweed.kernel import nft
from tweed.kernel.nft import Nft, NftMonitor
from tweed.plan.nft import masquerade

TABLE = masquerade(Prefix.parse("10.244.0.0/16"), Prefix.parse("10.244.1.0/24"), vni=1)


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space(f"tweednft-{os.getpid()}-nft")
    try:
        yield made
    finally:
        made.remove()


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ctypes.CDLL

    def missing(name: str | None, **options: object) -> ctypes.CDLL:
        if name and "nftables" in name:
            raise OSError(f"{name}: cannot open shared object file")
        return real(name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ctypes, "CDLL", missing)


@pytest.fixture(params=["library", "program"])
def back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "program":
        without_library(monkeypatch)
    return str(request.param)


def programs_started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    real, started = subprocess.run, []

    def run(command: list[str], **options: object) -> object:
        started.append(command)
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(nft.subprocess, "run", run)
    return started


def test_both_back_ends_write_and_read_the_same(space: Space, back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = programs_started(monkeypatch)

    def run() -> list[object]:
        with Nft() as handle:
            assert nft.ensure(handle, TABLE) and not nft.ensure(handle, TABLE)
            kinds = [next(iter(o)) for o in handle.objects("list table ip tweed-1")]
            assert handle.objects("list sets") == handle.objects("list sets")
            return [*kinds, nft.remove(handle, 1), nft.remove(handle, 1)]

    assert space.do(run) == ["metainfo", "table", "chain", *["rule"] * 6, ["nft delete table ip tweed-1"], []]
    assert bool([c for c in started if c[0].endswith("nft")]) == (back_end == "program")


@pytest.mark.usefixtures("back_end")
def test_a_transaction_is_all_or_nothing_and_its_error_is_one_line(space: Space) -> None:
    def run() -> None:
        with Nft() as handle:
            with pytest.raises(KernelError) as caught:
                handle.apply("add table ip mine\nadd rule ip nowhere c accept")
            assert (caught.value.operation, caught.value.errno) == ("nft add table ip mine", errno.ENOENT)
            assert str(caught.value).startswith("nft add table ip mine: No such file or directory") and "\n" not in str(caught.value)
            assert [o for o in handle.objects("list tables") if "table" in o] == []
            with pytest.raises(KernelError, match=r"^nft add tabel ip mine: syntax error, unexpected") as caught:
                handle.apply("add tabel ip mine")
            assert caught.value.errno == errno.EINVAL
            # The handle goes on working.
            handle.apply("add table ip mine")

    space.do(run)
    assert space.sh("nft list tables").split() == ["table", "ip", "mine"]


def test_without_the_right_it_says_so(space: Space, back_end: str) -> None:
    script = f"""
from tweed.errors import KernelError
from tweed.kernel import nft
if {back_end == "program"}:
    nft._open_library = lambda: None
try:
    with nft.Nft() as handle:
        handle.apply("add table ip mine")
except KernelError as error:
    print(error.errno, error)
"""
    out = space.sh(f"exec setpriv --bounding-set -net_admin {sys.executable} - <<'END'\n{script}\nEND")
    assert out.strip() == f"{errno.EPERM} nft add table ip mine: Operation not permitted (CAP_NET_ADMIN is needed: run as root)"


def test_neither_library_nor_program_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    without_library(monkeypatch)
    monkeypatch.setattr(nft, "SBIN", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    handle = Nft()  # nothing is looked for before the first call
    with pytest.raises(KernelError) as caught:
        handle.objects("list tables")
    assert str(caught.value) == "nft: neither libnftables.so.1 nor the nft program is here (apt-get install libnftables1, or nftables)"


def test_importing_loads_neither_ctypes_nor_the_library() -> None:
    script = "import sys, tweed.kernel.nft, tweed.plan.nft; print('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_handle_gives_everything_back(space: Space) -> None:
    """Neither descriptors nor memory pile up: 300 handles, and 3000 calls of one."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def resident_kb() -> int:
        return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1])

    def run() -> tuple[int, int, int]:
        for _ in range(20):
            with Nft() as handle:
                nft.ensure(handle, TABLE)
        gc.collect()
        fds, before = descriptors(), resident_kb()
        for _ in range(300):
            with Nft() as handle:
                handle.objects("list table ip tweed-1")
        with Nft() as handle:
            for _ in range(1500):
                handle.objects("list table ip tweed-1")
                handle.apply(TABLE.text)
        return fds, descriptors(), resident_kb() - before

    fds, after, grown_kb = space.do(run)
    assert after == fds
    assert grown_kb < 4096  # one context alone is 40 kB and more: 300 leaked ones would be over 12 MB


def test_the_generation_rises_with_every_change_and_with_nothing_else(space: Space) -> None:
    def run() -> list[int]:
        with Nft() as handle:
            numbers = [nft.generation()]
            nft.ensure(handle, TABLE)
            numbers.append(nft.generation())
            nft.ensure(handle, TABLE)
            nft.forward_listing(handle)
            numbers.append(nft.generation())
        return numbers

    first, second, third = space.do(run)
    assert first < second == third
    space.sh("iptables-nft -P FORWARD DROP")
    assert space.do(nft.generation) > third


def test_the_monitor_tells_who_and_not_of_our_own(space: Space) -> None:
    def run() -> None:
        monitor = NftMonitor()
        with Nft() as handle:
            handle.apply(TABLE.text)
            assert monitor.drain() == ()
            subprocess.run(["nft", "flush", "table", "ip", "tweed-1"], check=True)
            subprocess.run(["iptables-nft", "-P", "FORWARD", "DROP"], check=True)
            who = monitor.drain()
            assert [name.split(" (pid ")[0] for name in who] == ["nft", "iptables-nft"] and monitor.drain() == ()
            # More than the socket holds: nothing is known but that much has happened.
            for _ in range(3):
                handle.apply("table ip big { chain c { " + "counter accept; " * 6000 + "}; }\ndelete table ip big")
            assert "somebody" in monitor.drain()
            handle.apply(TABLE.text)
            assert monitor.drain() == ()
        monitor.close()

    space.do(run)


def test_the_monitor_wakes_a_loop(space: Space) -> None:
    import select

    monitor = space.do(lambda: NftMonitor(own=threading.get_native_id()))
    try:
        assert select.select([monitor], [], [], 0) == ([], [], [])
        space.sh("nft add table ip x")
        assert select.select([monitor], [], [], 5) == ([monitor], [], [])
        assert len(monitor.drain()) == 1
        assert select.select([monitor], [], [], 0) == ([], [], [])
    finally:
        monitor.close()


def test_only_tables_with_a_forward_chain_are_listed(space: Space) -> None:
    space.sh("""nft -f - <<'END'
        table ip services { chain big { type filter hook output priority 0; }; }
        table inet fw { chain f { type filter hook forward priority 0; policy drop; }; chain g { }; }
        table ip6 filter { chain FORWARD { type filter hook forward priority 0; }; }
END""")

    def run() -> set[str]:
        with Nft() as handle:
            return {o["chain"]["table"] for o in nft.forward_listing(handle) if "chain" in o}

    assert space.do(run) == {"fw", "filter"}
