"""Whole clusters in network namespaces of one machine."""
