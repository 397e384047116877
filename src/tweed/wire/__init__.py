"""Bytes and values, either way. No sockets, no clock."""
