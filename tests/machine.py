"""What a test run must leave as it found it: two prints of `script/machine-state`, compared.

The machine has other users, so where something may rightly end (a listener, somebody's namespace) only what is new counts.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
VARIABLE = "TWEED_MACHINE_BEFORE"
ONLY_NEW = {"listeners", "netns", "files", "processes"}
SETTLE_S = 5.0  # a namespace and its processes end a moment after they were told to

State = Mapping[str, frozenset[str]]


def parse(text: str) -> State:
    """The facts of each section. A section without facts is absent, one whose tool is missing is in `missing`."""
    state: dict[str, set[str]] = {}
    for line in text.splitlines():
        section, _, fact = line.partition("\t")
        if section == "listeners":
            fact = listener(fact)
        if not (section in ("listeners", "processes") and own(fact)):
            state.setdefault(section, set()).add(re.sub(r" pid=\d+", "", fact))
    return {section: frozenset(facts) for section, facts in state.items()}


def listener(line: str) -> str:
    """A line of `ss -Hlntup` without what changes by itself: protocol, local address, process, pid."""
    words = line.split()
    process = re.search(r'\("([^"]*)",pid=(\d+)', line)
    return f"{words[0]} {words[4]} {process[1]} pid={process[2]}" if process else f"{words[0]} {words[4]}"


def own(fact: str) -> bool:
    """True for a listener or a process that is this very pytest."""
    return fact.endswith(f" pid={os.getpid()}") or fact.startswith(f"{os.getpid()} ")


def now() -> State:
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    return parse(subprocess.run([ROOT / "script/machine-state"], env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def before() -> State:
    """As script/test found it; what it could not see then for want of a tool, and all where it did not run, as it is now."""
    early = parse(Path(os.environ[VARIABLE]).read_text()) if VARIABLE in os.environ else {"missing": frozenset(SECTIONS)}
    late = now()
    unseen = early.get("missing", frozenset())
    return {section: (late if section in unseen else early).get(section, frozenset()) for section in SECTIONS}


SECTIONS = ("links", "addresses", "routes", "rules", "nft", "iptables", "sysctls", "listeners", "enabled", "netns", "files", "processes")


def differences(before: State, after: State) -> list[str]:
    """Lines `section: + fact` for what is new and `section: - fact` for what is gone, in the order of SECTIONS."""
    lines = []
    for section in SECTIONS:
        old, new = before.get(section, frozenset()), after.get(section, frozenset())
        if section == "sysctls":  # a new device or module brings keys of its own
            keys = {fact.partition(":")[0] for fact in old}
            new = frozenset(fact for fact in new if fact.partition(":")[0] in keys)
        lines += [f"{section}: + {fact}" for fact in sorted(new - old)]
        if section not in ONLY_NEW:
            lines += [f"{section}: - {fact}" for fact in sorted(old - new)]
    return lines


def lasting_differences(before: State) -> list[str]:
    """The differences that are still there after `SETTLE_S`."""
    deadline = time.monotonic() + SETTLE_S
    while (found := differences(before, now())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
