"""A plain peer of the UDP mode: one packet, one datagram. It imports nothing of tweed, and checks every checksum of what it receives.

plain_peer.py TUN LOCAL PORT PEER     prints "packets N bad N" when it is told to end (SIGTERM)
"""

import fcntl
import os
import select
import signal
import socket
import struct
import sys

SO_RCVBUFFORCE = 33
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


def total(data: bytes) -> int:
    value = int.from_bytes(data + bytes(len(data) & 1))
    return value % 65535 or (65535 if value else 0)


def is_right(ip: bytes) -> bool:
    """One whole IPv4 packet whose checksums are right; of fragments and other protocols the header's only."""
    size = (ip[0] & 15) * 4
    if len(ip) < 20 or ip[0] >> 4 != 4 or int.from_bytes(ip[2:4]) != len(ip) or total(ip[:size]) != 0xFFFF:
        return False
    if int.from_bytes(ip[6:8]) & 0x3FFF or ip[9] not in (1, 6, 17) or (ip[9] == 17 and ip[size + 6 : size + 8] == bytes(2)):
        return True
    start = b"" if ip[9] == 1 else ip[12:20] + struct.pack("!BBH", 0, ip[9], len(ip) - size)
    return total(start + ip[size:]) == 0xFFFF


def main() -> None:
    device, local, port, peer = sys.argv[1:5]
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    outer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)  # for what comes in one burst after another process has taken over
    outer.bind((local, int(port)))
    packets = bad = 0

    def end(*_: object) -> None:
        print(f"packets {packets} bad {bad}", flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([tun, outer], [], [])
        if tun in ready:
            ip = bytearray(os.read(tun, 65536))
            if ip[0] >> 4 == 4 and ip[8] > 1:
                ip[8] -= 1
                value = int.from_bytes(ip[10:12]) + 0x100
                ip[10:12] = ((value & 0xFFFF) + (value >> 16)).to_bytes(2)
                outer.sendto(ip, (peer, int(port)))
        if outer in ready:
            ip = bytearray(outer.recv(65536))
            packets += 1
            bad += not is_right(ip)
            if len(ip) >= 20 and ip[8] > 1:
                ip[8] -= 1
                value = int.from_bytes(ip[10:12]) + 0x100
                ip[10:12] = ((value & 0xFFFF) + (value >> 16)).to_bytes(2)
                os.write(tun, ip)


if __name__ == "__main__":
    main()
