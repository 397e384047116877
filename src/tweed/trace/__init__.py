"""The walk: what tables decide about one packet, what its bytes are, and what the kernel really did with it."""
