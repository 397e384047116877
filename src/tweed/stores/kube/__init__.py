"""Leases in the annotations of Kubernetes Node objects."""
