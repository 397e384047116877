"""The contract's ground on Kubernetes: a stand-in API server of one's own, or the real one that the environment names (docs/kubernetes.md).

On a real cluster nothing is touched but Nodes that were made here, whose names begin with `tweed-contract-`, and annotations of a prefix
that nobody else has.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

import msgspec
import pytest

from tweed.errors import Conflict, StoreError
from tweed.lab.kubeserver import KubeServer
from tweed.stores.kube.access import Access, Token, find_access, tls_context
from tweed.stores.kube.api import Absent
from tweed.stores.kube.store import NODES, KubeStore, path
from tweed.wire.kubenode import Names
from tweed.wire.lease import parse_key

MERGE = "application/merge-patch+json"
ANNOTATIONS = {"PublicIP": "public_ip", "PublicIPv6": "public_ip6", "BackendType": "backend_type"}


def real_access() -> Access | None:
    """How to reach the real API server, None where the environment names none."""
    if file := os.environ.get("TWEED_TEST_KUBECONFIG"):
        return find_access("", Path(file), {})
    if not (server := os.environ.get("TWEED_TEST_KUBE_API")):
        return None
    authority = os.environ.get("TWEED_TEST_KUBE_CA")
    tls = tls_context(Path(authority) if authority else None) if server.startswith("https:") else None
    return Access(server.rstrip("/"), Token(os.environ.get("TWEED_TEST_KUBE_TOKEN", "")), tls)


class ContractStore(KubeStore):
    """A store whose Nodes come into being when somebody wants their subnet: this plays kubelet and kube-controller-manager."""

    ground: KubeGround

    def node_name(self, key, owner):
        return self.ground.node_name(key)

    async def create(self, lease, owner, ttl_s=None):
        await self.ground.make_node(self, lease.key)
        return await super().create(lease, owner)


class KubeGround:
    ENDS = False  # a lease lasts as long as its Node
    SETS_CONFIG = False  # it is a file that a ConfigMap makes

    def __init__(self, directory, servers):
        self.directory = directory
        self.id = uuid.uuid4().hex[:12]
        self.names = Names.under(f"contract-{self.id}.tweed.example")
        self.server: KubeServer | None = None
        self.stores: list[ContractStore] = []
        self.nodes: set[str] = set()

    async def access(self):
        if self.server is None:
            self.server = KubeServer()
            await self.server.start()
        return Access(self.server.url, Token())

    async def open(self):
        store = ContractStore(await self.access(), self.names, self.directory / "net-conf.json")
        store.ground = self
        self.stores.append(store)
        return store

    def node_name(self, key):
        return f"tweed-contract-{self.id}-" + re.sub("[^a-z0-9]+", "-", key.lower()).strip("-")

    async def make_node(self, store, key):
        """A Node whose pod CIDRs are what the key says; one without any where it says nothing that the API takes."""
        name = self.node_name(key)
        # What controllers would soon add is there already, so that nobody else changes it.
        spec = {"unschedulable": True, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}
        node = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}}, "spec": spec}
        try:
            cidrs = [str(subnet) for subnet in parse_key(key) if subnet is not None]
        except ValueError:
            cidrs = [key.replace("-", "/")] if re.fullmatch("[0-9.]+-[0-9]+", key) else []
        if cidrs:
            spec |= {"podCIDR": cidrs[0], "podCIDRs": cidrs}
        self.nodes.add(name)
        try:
            await store.api.ask("POST", NODES, body=node)
        except Conflict:
            pass
        except StoreError:  # 422: a newer server takes no pod CIDR with host bits
            del spec["podCIDR"], spec["podCIDRs"]
            await store.api.ask("POST", NODES, body=node)

    async def write_raw(self, key, value):
        store, key = self.stores[0], key.decode()
        await self.make_node(store, key)
        wanted = {self.names.managed: "true", self.names.backend_type: "vxlan"}
        try:
            fields = msgspec.json.decode(value, type=dict)
        except (msgspec.DecodeError, UnicodeDecodeError):
            fields, wanted[self.names.backend_data] = {}, value.decode("utf-8", "replace")
        wanted |= {getattr(self.names, name): fields[field] for field, name in ANNOTATIONS.items() if fields.get(field) is not None}
        if "BackendData" in fields:
            wanted[self.names.backend_data] = msgspec.json.encode(fields["BackendData"]).decode()
        await store.api.ask("PATCH", path(self.node_name(key)), body={"metadata": {"annotations": wanted}}, kind=MERGE)

    async def forget_history(self, store):
        self.server.compact()

    async def close(self):
        for name in self.nodes:
            try:
                await self.stores[0].api.ask("DELETE", path(name))
            except (Absent, StoreError):
                continue
        for store in self.stores:
            await store.close()
        if self.server is not None:
            await self.server.close()


class RealKubeGround(KubeGround):
    async def access(self):
        return real_access()

    async def forget_history(self, store):
        pytest.skip("a real API server forgets in its own time")

    async def close(self):
        if any(store.api.closed for store in self.stores):
            await self.open()
            self.stores.reverse()
        await super().close()


KUBE_GROUNDS = {"kube": KubeGround} | ({"kube-real": RealKubeGround} if real_access() is not None else {})
