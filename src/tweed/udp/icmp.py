"""What the sender of a dropped packet is told (RFC 792, RFC 1812 section 4.3.2). flannel never says that a time to live ended."""

from __future__ import annotations

from struct import pack

from tweed.udp.packet import number, ones_sum

UNREACHABLE, TIME_EXCEEDED = 3, 11
MEANINGS = {"tx-ttl": (TIME_EXCEEDED, 0), "rx-ttl": (TIME_EXCEEDED, 0), "tx-no-peer": (UNREACHABLE, 0)}  # the codes: in transit; network
ERRORS = (3, 4, 5, 11, 12)
TTL = 64
RATE, BURST = 100.0, 50.0  # a second, and at once; the kernel's own limit is of the same order


class Allowance:
    """A token bucket. The time in seconds is an argument."""

    def __init__(self) -> None:
        self.tokens, self.at = BURST, 0.0

    def take(self, now: float) -> bool:
        self.tokens, self.at = min(BURST, self.tokens + (now - self.at) * RATE), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def answer(why: str, quote: bytes, own: int) -> bytes | None:
    """The IPv4 packet that tells the sender why its packet, of which `quote` is the beginning, was dropped; None where RFC 1122
    section 3.2.2 forbids one: about an ICMP error, a later fragment, or a source that is no single host. `own` is the address that speaks."""
    header = (quote[0] & 15) * 4
    source = number(bytearray(quote), 12, 4)
    first = not number(bytearray(quote), 6) & 0x1FFF
    one_host = source >> 24 not in (0, 127) and source >> 28 < 14
    one_target = quote[16] >> 4 < 14
    error = quote[9] == 1 and (len(quote) <= header or quote[header] in ERRORS)
    if not first or error or not one_host or not one_target:
        return None
    kind, code = MEANINGS[why]
    body = quote[: header + 8]
    message = pack("!BBHI", kind, code, 0, 0) + body
    message = message[:2] + pack("!H", 0xFFFF ^ ones_sum(message)) + message[4:]
    # Identification and header checksum 0: a raw socket fills them in (raw(7)).
    return pack("!BBHHHBBHII", 0x45, 0xC0, 20 + len(message), 0, 0, TTL, 1, 0, own, source) + message
