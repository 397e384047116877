"""The user-space UDP mode, flannel's `udp` backend: a process between a TUN device and a UDP socket that carries raw inner IPv4 packets.

peers       who has which subnet, as the forwarding process needs it
packet      what is checked of one packet, and why it is dropped; icmp: what the sender is told
naive       one packet per system call      vector   bursts, in numpy      fast   the same in C (native/)
outer       the UDP socket (the TUN is kernel.tun), and which offloads the kernel grants
forwarder   the process      control   what the agent says to it, and hears
"""
