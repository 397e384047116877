"""A watch's lines become events: whatever comes in them, and with the same outcome as reading all Nodes anew."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


changes = st.tuples(st.sampled_from(NODES), st.sampled_from(CIDRS), st.one_of(st.none(), st.just(""), st.integers(1, 9)), st.booleans())


class Cluster:
    """Nodes that change, a reader of the changes, and what it has told so far."""

    def __init__(self):
        self.nodes, self.records, self.revision = {}, {}, 1
        self.reader = reader()

    def change(self, name, cidr, what, delete):
        self.revision += 1
        kind = "DELETED" if delete and name in self.nodes else "MODIFIED" if name in self.nodes else "ADDED"
        if kind == "DELETED":
            node = self.nodes.pop(name) | {}
            node = node | {"metadata": node["metadata"] | {"resourceVersion": str(self.revision)}}
        else:
            cidr = self.nodes[name]["spec"]["podCIDR"] if name in self.nodes else cidr
            node = self.nodes[name] = document(name, self.revision, cidr, what)
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
        found = [(name, read(msgspec.convert(node, Node), NAMES)) for name, node in self.nodes.items()]
        for name, what in sorted(found, key=lambda f: not isinstance(f[1], LeaseRecord)):
            published.see(name, what, None)
        self.reader.now = published
        self.records = {r.key: r for r in published.by_node.values() if isinstance(r, LeaseRecord)}

    def published(self):
        """All leases that Nodes publish now, by key: one of them, where there are several, is the right one."""
        found = {}
        for node in self.nodes.values():
            what = read(msgspec.convert(node, Node), NAMES)
            if isinstance(what, LeaseRecord):
                found.setdefault(what.key, []).append(what.lease)
        return found


@settings(max_examples=150, deadline=None)
@given(st.lists(changes, max_size=25))
def test_events_lead_to_what_a_list_would_show(some):
    cluster = Cluster()
    for each in some:
        cluster.change(*each)
        wanted = cluster.published()
        assert cluster.records.keys() == wanted.keys()
        assert all(record.lease in wanted[key] for key, record in cluster.records.items())


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2**70), st.floats(allow_nan=False), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
objects = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.one_of(
            json_values,
            st.fixed_dictionaries({"name": st.text(max_size=5), "resourceVersion": st.text("0123456789", max_size=25)}, optional={"annotations": json_values}),
        ),
        "spec": st.one_of(json_values, st.fixed_dictionaries({}, optional={"podCIDR": json_values, "podCIDRs": json_values})),
        "status": json_values,
        "code": json_values,
        "message": json_values,
    },
)
lines = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda kind, value: msgspec.json.encode({"type": kind, "object": value}),
        st.one_of(json_values, st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"])),
        st.one_of(json_values, objects),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=4))
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
