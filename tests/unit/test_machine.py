"""tests/machine.py: what counts as a difference between two states of a machine."""

from __future__ import annotations

import os

import pytest
from tests.machine import differences, parse

SSH = 'tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=%d,fd=3))'


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("links\t1: lo", "links\t1: lo", []),
        ("links\t1: lo", "links\t1: lo\nlinks\t9: x", ["links: + 9: x"]),
        ("routes\tdefault via a", "", ["routes: - default via a"]),
        ("routes\ta\nnft\tb", "nft\tc\nroutes\td", ["routes: + d", "routes: - a", "nft: + c", "nft: - b"]),
        # Other users of the machine may stop what they started before.
        ("netns\tx\nfiles\t/run/tweed\nprocesses\t7 tweed agent\nlisteners\t" + SSH % 7, "", []),
        ("netns\tx", "netns\ty", ["netns: + y"]),
        ("processes\t7 tweed agent", "processes\t8 tweed agent", ["processes: + 8 tweed agent"]),
        # A daemon that was restarted is the same listener.
        ("listeners\t" + SSH % 7, "listeners\t" + SSH % 8, []),
        ("", "listeners\t" + SSH % 8, ["listeners: + tcp 0.0.0.0:22 sshd"]),
        ("", "listeners\tudp UNCONN 0 0 0.0.0.0:8472 0.0.0.0:*", ["listeners: + udp 0.0.0.0:8472"]),
        # What pytest itself holds ends with it.
        ("", "listeners\t" + SSH % os.getpid(), []),
        ("", f"processes\t{os.getpid()} python -m pytest", []),
        # The keys of a new device say nothing, those of an old one do.
        ("sysctls\t/x/a:0", "sysctls\t/x/a:0\nsysctls\t/x/b:1", []),
        ("sysctls\t/x/a:0", "sysctls\t/x/a:1", ["sysctls: + /x/a:1", "sysctls: - /x/a:0"]),
    ],
)
def test_differences(before: str, after: str, lines: list[str]) -> None:
    assert differences(parse(before), parse(after)) == lines
