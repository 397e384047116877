"""A lease as flannel's kube mode keeps it: in the annotations of a Node, whose pod CIDRs are the subnets (flannel v0.28).

The Node belongs to kubelet and others too: only what is ours is read and written.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, parse_address
from tweed.errors import UsageError
from tweed.model import Endpoint, Lease, Owner
from tweed.wire.gojson import field, read_object, shown
from tweed.wire.lease import format_backend_data, lease_of

DEFAULT_PREFIX = "flannel.alpha.coreos.com"
# What flannel accepts: a host part with a dot, all lower case, then nothing or a word that ends in a dash.
PREFIX = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?")
NETWORK_UNAVAILABLE = "NetworkUnavailable"


class Metadata(msgspec.Struct):
    name: str = ""
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    annotations: dict[str, str] | None = None


class Spec(msgspec.Struct):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class Node(msgspec.Struct):
    """What of a Node concerns every other node."""

    metadata: Metadata
    spec: Spec = msgspec.field(default_factory=Spec)

    @property
    def revision(self) -> int:
        """Raises ValueError where the server's resourceVersion is no number."""
        return revision(self.metadata.resource_version)


class Condition(msgspec.Struct):
    type: str = ""
    status: str = ""


class Status(msgspec.Struct):
    conditions: list[Condition] | None = None


class NodeStatus(msgspec.Struct):
    """What of a Node concerns only that node itself."""

    status: Status = msgspec.field(default_factory=Status)

    @property
    def network_available(self) -> bool:
        """True when somebody has said so. Without the condition it is not said."""
        return any(c.type == NETWORK_UNAVAILABLE and c.status == "False" for c in self.status.conditions or ())


class Names(msgspec.Struct, frozen=True):
    """The annotations' names under one prefix."""

    managed: str
    backend_type: str
    backend_data: str
    backend_data6: str
    public_ip: str
    public_ip6: str
    overwrite: str
    overwrite6: str
    node_ip: str
    node_ip6: str
    owner: str

    @classmethod
    def under(cls, prefix: str) -> Names:
        """Of `--kube-annotation-prefix`: `org.com` gives `org.com/backend-type`, `org.com/pfx` gives `org.com/pfx-backend-type`. Raises UsageError."""
        full = prefix if "/" in prefix else f"{prefix}/"
        if not full.endswith(("/", "-")):
            full += "-"
        if PREFIX.fullmatch(full) is None:
            raise UsageError(f"--kube-annotation-prefix={prefix!r}: use DOMAIN or DOMAIN/WORD of lower case letters, digits, - and _, such as {DEFAULT_PREFIX}")
        return cls(
            managed=f"{full}kube-subnet-manager",
            backend_type=f"{full}backend-type",
            backend_data=f"{full}backend-data",
            backend_data6=f"{full}backend-v6-data",
            public_ip=f"{full}public-ip",
            public_ip6=f"{full}public-ipv6",
            overwrite=f"{full}public-ip-overwrite",
            overwrite6=f"{full}public-ipv6-overwrite",
            node_ip=f"{full}node-public-ip",
            node_ip6=f"{full}node-public-ipv6",
            owner=f"{full}tweed-owner",
        )

    @property
    def of_lease(self) -> tuple[str, ...]:
        """What goes with a lease; the others are the operator's."""
        return self.managed, self.backend_type, self.backend_data, self.backend_data6, self.public_ip, self.public_ip6, self.owner


def revision(text: str) -> int:
    """A resourceVersion as a number, which it is on every API server (and officially, for comparisons, since Kubernetes 1.35)."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"resourceVersion {shown(text)}: not a number")
    return int(text)


# ---- reading ------------------------------------------------------------------------------------------------------


def pod_cidrs(node: Node) -> tuple[Prefix | None, Prefix | None]:
    """The IPv4 and the IPv6 subnet of the node, None where it has none of that family. Raises ValueError."""
    texts = node.spec.pod_cidrs or [text for text in (node.spec.pod_cidr,) if text]
    if len(texts) > 2:
        raise ValueError(f"{len(texts)} pod CIDRs: pod cidrs should be IPv4/IPv6 only or dualstack")
    found: dict[int, Prefix] = {}
    for text in texts:
        subnet = Prefix.parse(text)
        if not 0 < subnet.length < subnet.bits:
            raise ValueError(f"pod CIDR {text}: a subnet cannot have this length")
        if subnet.network != subnet:
            raise ValueError(f"pod CIDR {text} has host bits set")
        found.setdefault(subnet.family, subnet)
    return found.get(4), found.get(6)


def read_lease(node: Node, names: Names) -> Lease | None:
    """The lease that a node publishes; None for a node that runs no flannel. Raises ValueError with a one-line reason for what is no lease.

    A family belongs to it only where its data or its address is published: a cluster of both families may have a network of one.
    """
    annotations = node.metadata.annotations or {}
    if annotations.get(names.managed) != "true":
        return None
    subnet, subnet6 = pod_cidrs(node)
    if subnet is None and subnet6 is None:
        raise ValueError("the node has no pod CIDR")
    published = names.backend_data in annotations or names.public_ip in annotations
    published6 = names.backend_data6 in annotations or names.public_ip6 in annotations
    if published and not published6 and subnet is not None:
        subnet6 = None
    elif published6 and not published and subnet6 is not None:
        subnet = None
    fields: dict[str, Any] = {
        "publicip": annotations.get(names.public_ip),
        "publicipv6": annotations.get(names.public_ip6),
        "backendtype": annotations.get(names.backend_type),
        "backenddata": _data(annotations, names.backend_data),
        "backendv6data": _data(annotations, names.backend_data6),
    }
    return lease_of(subnet, subnet6, fields)


def _data(annotations: dict[str, str], name: str) -> dict[str, Any] | None:
    text = annotations.get(name)
    if text is None or text.strip() == "null":
        return None
    try:
        return read_object(text)
    except ValueError as error:
        raise ValueError(f"{name.rpartition('/')[2]} {error}") from None


def read_owner(node: Node, names: Names) -> tuple[Owner | None, int]:
    """Who wrote the lease, and the revision after which it appeared (0: unknown, older than any other). Flannel writes neither."""
    text = (node.metadata.annotations or {}).get(names.owner)
    if text is None:
        return None, 0
    try:
        fields = read_object(text)
        created, name, boot_id = field(fields, "created", int, 0), field(fields, "node", str, ""), field(fields, "boot_id", str, "")
    except ValueError:
        return None, 0
    return Owner(name, boot_id) if name else None, max(created, 0)


def read_address(node: Node, name: str, family: int) -> bytes | None:
    """An address that an operator wrote into an annotation. Raises ValueError naming it."""
    text = (node.metadata.annotations or {}).get(name, "")
    if not text.strip():
        return None
    try:
        address = parse_address(text)
    except ValueError:
        address = b""
    if len(address) != (4 if family == 4 else 16):
        raise ValueError(f"annotation {name}={shown(text)} of node {node.metadata.name}: not an IPv{family} address")
    return address


# ---- writing ------------------------------------------------------------------------------------------------------


def lease_annotations(lease: Lease, owner: Owner | None, created: int, names: Names) -> dict[str, str | None]:
    """What a node publishes, in flannel's words to the byte, and our own beside it; None for what is to be removed."""
    fields: dict[str, str | None] = dict.fromkeys(names.of_lease)
    fields |= {names.managed: "true", names.backend_type: lease.backend}
    for endpoint, data, public in ((lease.v4, names.backend_data, names.public_ip), (lease.v6, names.backend_data6, names.public_ip6)):
        if endpoint is not None:
            fields[data] = format_backend_data(endpoint)
            fields[public] = _address(endpoint)
    holder = {"node": owner.node, "boot_id": owner.boot_id} if owner is not None else {}
    fields[names.owner] = msgspec.json.encode({**holder, "created": created}).decode()
    return fields


def _address(endpoint: Endpoint) -> str:
    return format_address(endpoint.public_ip if endpoint.public_ip is not None else bytes(len(endpoint.subnet.address)))


def annotations_patch(fields: dict[str, str | None], resource_version: str) -> dict[str, Any]:
    """A patch of annotations that the server refuses (409) when the Node is no longer that of `resource_version`."""
    return {"metadata": {"resourceVersion": resource_version, "annotations": fields}}


def condition_patch(now: str) -> dict[str, Any]:
    """The strategic merge patch that says that this node's network works, in flannel's words. `now`: RFC 3339, in UTC."""
    condition = {
        "type": NETWORK_UNAVAILABLE,
        "status": "False",
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }
    return {"status": {"conditions": [condition]}}
