"""iptables, through iptables' own programs: rules written by raw nft into tables of iptables-nft confuse it.

There may be two of them in one kernel, both in force: iptables-nft (Debian's `iptables`) and the legacy tables.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tweed.errors import KernelError
from tweed.kernel.nft import Nft, find_program
from tweed.plan import flannel_rules
from tweed.plan.forward_rules import ADDRESS_WORD, FORWARD, Edit, Saved
from tweed.plan.nft import Object
from tweed.plan.nft_chains import BaseChain, forward_hooks, made_by_iptables

TIMEOUT_S = 10
WAIT_S = 5  # for the lock of legacy iptables
# The network namespace of the calling thread, not of the process.
LEGACY_TABLES = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}
INCOMPATIBLE = "is incompatible, use 'nft' tool"  # iptables-save's word for a table with native nft rules; then it prints none
NAME = {4: "iptables", 6: "ip6tables"}


def read(listing: Iterable[Object]) -> list[Saved]:
    """The filter tables that are in force. `listing` (`kernel.nft.forward_listing`) says whether iptables-nft has one.

    Nothing is created by looking: a table that does not exist is not asked for. One whose program is not installed is left
    out. Raises KernelError.
    """
    listing = list(listing)
    hooks = forward_hooks(listing)
    found = []
    for family, word in ADDRESS_WORD.items():
        if BaseChain(word, "filter", FORWARD) in hooks:
            found.append(_saved(family, legacy=False, exact=made_by_iptables(listing, word, "filter")))
        if "filter" in _legacy_tables(family):
            found.append(_saved(family, legacy=True, exact=True))
    return [one for one in found if one is not None]


def apply(edits: Sequence[Edit]) -> None:
    """Make all edits of each program and table in one transaction. Raises KernelError; then nothing of that table's was changed."""
    for program, table in dict.fromkeys((edit.program, edit.table) for edit in edits):
        lines = "".join(f"{edit.line}\n" for edit in edits if (edit.program, edit.table) == (program, table))
        _run([f"{program}-restore", "--noflush", "--wait", str(WAIT_S)], f"*{table}\n{lines}COMMIT\n")


def flannels_rules(nft: Nft) -> tuple[Edit, ...]:
    """What takes flanneld's chains out again, wherever they stand; empty where there are none. Raises KernelError."""
    chains = nft.objects("list chains")
    found: list[Edit] = []
    for family, word in ADDRESS_WORD.items():
        kinds = [False] * flannel_rules.has_chains(chains, word) + [True] * bool(_legacy_tables(family))
        for program in [program for legacy in kinds if (program := _program(family, legacy)) is not None]:
            found += flannel_rules.removal(program, _run([f"{program}-save"]))
    return tuple(found)


def legacy_in_use() -> bool:
    """Whether the old tables exist here: nftables' generation says nothing of them."""
    return any(_legacy_tables(family) for family in LEGACY_TABLES)


def legacy_rules(*, counters: bool = False) -> list[tuple[str, str]]:
    """What `PROGRAM-save` prints of the old tables, by program; of those that do not exist nothing. Raises KernelError."""
    programs = (_program(family, legacy=True) for family in LEGACY_TABLES if _legacy_tables(family))
    return [(program, _run([f"{program}-save", *(["-c"] if counters else [])])) for program in programs if program is not None]


def usual(family: int) -> str:
    """The program that flanneld runs. Raises KernelError where it is not installed."""
    if find_program(f"{NAME[family]}-restore") is None:
        raise KernelError(NAME[family], errno.ENOENT, "is not installed (apt-get install iptables)")
    return NAME[family]


def _legacy_tables(family: int) -> list[str]:
    try:
        return LEGACY_TABLES[family].read_text().split()
    except FileNotFoundError:
        return []


def _saved(family: int, legacy: bool, exact: bool) -> Saved | None:
    program = _program(family, legacy)
    if program is None:
        return None
    text = _run([f"{program}-save", "-t", "filter"])
    return Saved(program, family, legacy, text, exact and INCOMPATIBLE not in text)


def _program(family: int, legacy: bool) -> str | None:
    """The name of the program for one of the two kinds of tables, None where it is not installed."""
    plain = NAME[family]
    explicit = f"{plain}-{'legacy' if legacy else 'nft'}"
    if find_program(f"{explicit}-save"):
        return explicit
    return plain if find_program(f"{plain}-save") and _is_legacy(plain) is legacy else None


@lru_cache
def _is_legacy(program: str) -> bool:
    return "nf_tables" not in _run([program, "--version"])


def _run(command: list[str], text: str | None = None) -> str:
    program = find_program(command[0])
    if program is None:
        raise KernelError(command[0], errno.ENOENT, "is not installed (apt-get install iptables)")
    try:
        done = subprocess.run([program, *command[1:]], input=text, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(command[0], errno.EIO, str(error)) from None
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise KernelError(command[0], errno.EINVAL, words[0] if words else f"ended with code {done.returncode}")
    return done.stdout
