"""A watch's lines become events: whatever comes in them, and with the same outcome as reading all Nodes anew."""

import json

import msgspec
import pytest
from tests.unit import junk
from tests.unit.spelling import Choices, cases, spelled

from tweed.errors import Compacted, StoreError
from tweed.model import LeaseRecord
from tweed.stores.kube.watch import OwnNode, Published, Reader, read
from tweed.wire.kubenode import Names, Node

NAMES = Names.under("flannel.alpha.coreos.com")
NODES, CIDRS = ("n1", "n2", "n3"), ("10.244.1.0/24", "10.244.2.0/24")


def reader(own=""):
    node = OwnNode(NAMES)
    node.name = own
    return Reader(Published(1), NAMES, node, {})


def document(name, revision, cidr, what):
    """A Node that publishes nothing (None), rubbish (""), or a lease on a host."""
    annotations = {} if what is None else {NAMES.managed: "true", NAMES.backend_type: "vxlan"}
    if what:
        annotations |= {NAMES.public_ip: f"192.0.2.{what}", NAMES.backend_data: '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}'}
    elif what == "":
        annotations[NAMES.backend_data] = "rubbish"
    return {"metadata": {"name": name, "resourceVersion": str(revision), "annotations": annotations}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}


class Cluster:
    """Nodes that change, a reader of the changes, and what it has told so far."""

    def __init__(self):
        self.nodes, self.read, self.records, self.revision = {}, {}, {}, 1
        self.reader = reader()

    def change(self, name, cidr, what, delete):
        self.revision += 1
        kind = "DELETED" if delete and name in self.nodes else "MODIFIED" if name in self.nodes else "ADDED"
        if kind == "DELETED":
            node = self.nodes.pop(name)
            del self.read[name]
            node = node | {"metadata": node["metadata"] | {"resourceVersion": str(self.revision)}}
        else:
            cidr = self.nodes[name]["spec"]["podCIDR"] if name in self.nodes else cidr
            node = self.nodes[name] = document(name, self.revision, cidr, what)
            self.read[name] = read(msgspec.convert(node, Node), NAMES)
        events, error = self.reader.read([msgspec.json.encode({"type": kind, "object": node})])
        if error is not None:
            assert isinstance(error, Compacted)
            self.list()
            return
        for event in events:
            self.records.pop(event.key, None)
            if event.record is not None:
                self.records[event.key] = event.record

    def list(self):
        published = Published(self.revision)
        for name, what in sorted(self.read.items(), key=lambda f: not isinstance(f[1], LeaseRecord)):
            published.see(name, what, None)
        self.reader.now = published
        self.records = {r.key: r for r in published.by_node.values() if isinstance(r, LeaseRecord)}

    def published(self):
        """All leases that Nodes publish now, by key: one of them, where there are several, is the right one."""
        found = {}
        for what in self.read.values():
            if isinstance(what, LeaseRecord):
                found.setdefault(what.key, []).append(what.lease)
        return found


@spelled(100)
def changes(choose: Choices):
    what = (None, "", *range(1, 10))
    return choose.several(25, lambda: (choose.one_of(NODES), choose.one_of(CIDRS), choose.one_of(what), choose.flag()))


@cases(150, changes)
def test_events_lead_to_what_a_list_would_show(some):
    cluster = Cluster()
    for each in some:
        cluster.change(*each)
        wanted = cluster.published()
        assert cluster.records.keys() == wanted.keys()
        assert all(record.lease in wanted[key] for key, record in cluster.records.items())


STATUS = {"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}}
LINES = [
    *(
        {"type": kind, "object": document(name, 7, CIDRS[0], what) | STATUS}
        for kind in ("ADDED", "MODIFIED", "DELETED")
        for name in "na"
        for what in (None, "", 7)
    ),
    {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "8"}}},
    {"type": "ERROR", "object": {"code": 410, "message": "too old"}},
]
WORDS = ("metadata", "spec", "status", "name", "resourceVersion", "annotations", "podCIDR", "podCIDRs", "code", "conditions", "ADDED", "10.244.9.0/24")


@spelled(200)
def lines(choose: Choices) -> list[bytes]:
    words = (*WORDS, *NAMES.of_lease, choose.text(12))

    def line() -> bytes:
        if choose.below(10) == 9:
            return choose.bytes(choose.below(40))
        return json.dumps(junk.damaged(choose, choose.one_of(LINES), words)).encode()

    return choose.several(4, line)


@cases(300, lines)
def test_whatever_a_server_sends_is_an_event_or_an_error_of_the_store(some):
    one = reader(own="n")
    for line in some:
        events, error = one.read([line])
        assert error is None or (isinstance(error, StoreError) and "\n" not in str(error))
        assert all(event.key.isprintable() for event in events)


@pytest.mark.parametrize(("code", "kind"), [(410, Compacted), (500, StoreError), (0, StoreError)])
def test_an_error_in_the_stream(code, kind):
    good = msgspec.json.encode({"type": "ADDED", "object": document("n1", 2, CIDRS[0], 7)})
    events, error = reader().read([good, msgspec.json.encode({"type": "ERROR", "object": {"code": code, "message": "too old"}})])
    assert isinstance(error, kind) and str(error) == f"the API server ended the watch: {code} too old"
    assert [event.key for event in events] == ["10.244.1.0-24"], "what came before it counts"
