"""Which rule drops a packet, asked of nftables' own trace; nothing of it outlives the process."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from tests.kernel.conftest import Namespace

from tweed.errors import KernelError
from tweed.kernel.netns import run_in
from tweed.kernel.nfttrace import Culprit, RuleTrace

PATIENCE_S = 20.0
RULES = """
table inet f {
    chain deeper { udp dport 7 drop; udp dport 8 reject; }
    chain first { type filter hook output priority 0; policy accept; udp dport 9 counter; jump deeper; }
}
table ip g {
    chain last { type filter hook output priority 5; policy drop; udp dport 9 accept; ip protocol icmp accept; }
}
"""


def send(space: Namespace, port: int, payload: bytes) -> None:
    with run_in(space.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as opened, contextlib.suppress(OSError):
        opened.sendto(payload, ("127.0.0.1", port))


def trace(space: Namespace, port: int, payload: bytes = b"NONCE-01") -> Culprit | None:
    with run_in(space.fd, lambda: RuleTrace((f"meta l4proto 17 @th,64,64 0x{b'NONCE-01'.hex()}",))) as made:
        send(space, port, payload)
        return made.culprit(0.3)


@pytest.mark.parametrize(
    ("port", "chain", "text", "command"),
    [
        (7, "deeper", "udp dport 7 drop", "nft delete rule inet f deeper handle "),
        (8, "deeper", "udp dport 8 reject", "nft delete rule inet f deeper handle "),
        (10, "last", "type filter hook output priority", "nft chain ip g last '{ policy accept ; }'"),
    ],
)
def test_the_rule_or_policy_that_drops_it_is_named_and_its_command_mends_it(netns: Namespace, port: int, chain: str, text: str, command: str) -> None:
    netns.run(f"nft -f - <<'END'\n{RULES}\nEND")
    found = trace(netns, port)
    assert found is not None and found.chain == chain and found.text.startswith(text) and found.command.startswith(command)
    netns.run(found.command)
    after = trace(netns, port)
    assert after is None or after.command != found.command


def test_what_passes_and_what_is_not_ours_names_nothing(netns: Namespace) -> None:
    netns.run(f"nft -f - <<'END'\n{RULES}\nEND")
    assert trace(netns, 9) is None
    assert trace(netns, 7, b"NONCE-02") is None
    assert "tweed-walk" not in netns.run("nft list tables")


def test_kill_9_takes_the_table_along(netns: Namespace) -> None:
    script = "from tweed.kernel.nfttrace import RuleTrace; import time\nt = RuleTrace(('udp dport 7',)); print('on', flush=True); time.sleep(100)"
    command = ["ip", "netns", "exec", netns.name, sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "on\n"
            assert "tweed-walk" in netns.run("nft list tables")
        finally:
            process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while "tweed-walk" in netns.run("nft list tables"):
        assert time.monotonic() < deadline, "the table is left"
        time.sleep(0.02)


def test_a_match_that_is_none_is_refused_and_leaves_nothing(netns: Namespace) -> None:
    with pytest.raises(KernelError):
        run_in(netns.fd, lambda: RuleTrace(("no such match",)))
    assert netns.run("nft list tables").strip() == ""
