"""etcd's keys and values, its endpoints and its errors, without an etcd."""

import json
import sys
from pathlib import Path

import grpc
import pytest
from tests.unit import junk
from tests.unit.spelling import Choices, cases, spelled

from tweed.config import Settings
from tweed.errors import StoreUnavailable, UsageError
from tweed.model import UNKNOWN_S, Junk, Lease, Owner
from tweed.stores import open_store
from tweed.stores.etcd import rpc_pb2 as rpc
from tweed.stores.etcd.client import reason
from tweed.stores.etcd.endpoints import Files, parse_endpoints
from tweed.stores.etcd.layout import Layout, format_owner, join, parse_owner
from tweed.stores.etcd.store import Batch

LAYOUT = Layout("/coreos.com/network")
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"}}'


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("/coreos.com/network", b"/coreos.com/network/config"),
        ("/coreos.com/network/", b"/coreos.com/network/config"),
        ("//coreos.com//network", b"/coreos.com/network/config"),
        ("///x", b"/x/config"),
        ("/a/../b/./c", b"/b/c/config"),
        ("relative", b"relative/config"),
    ],
)
def test_a_prefix_is_joined_as_go_joins_paths(prefix, key):
    assert join(prefix, "config") == Layout(prefix).config == key


@pytest.mark.parametrize("prefix", ["", "/", "//"])
def test_a_prefix_that_names_nothing_is_refused(prefix):
    with pytest.raises(UsageError, match="--etcd-prefix"):
        Layout(prefix)


def test_owners_lie_beside_what_flannel_reads_and_in_what_we_watch():
    owner = LAYOUT.owner_key("10.244.1.0-24")
    assert not owner.startswith(b"/coreos.com/network/subnets")
    assert all(LAYOUT.watched.start <= key < LAYOUT.watched.end for key in (LAYOUT.config, owner, LAYOUT.lease_key("10.244.1.0-24")))


@pytest.mark.parametrize(
    ("key", "lease", "owner"),
    [
        (b"/coreos.com/network/subnets/10.244.1.0-24", b"10.244.1.0-24", None),
        (b"/coreos.com/network/subnets/a/b", b"a/b", None),
        (b"/coreos.com/network/subnets", None, None),
        (b"/coreos.com/network/subnets-old/10.244.1.0-24", None, None),
        (b"/coreos.com/network/tweed/owners/10.244.1.0-24", None, b"10.244.1.0-24"),
        (b"/coreos.com/network/tweed/else", None, None),
    ],
)
def test_which_keys_are_what(key, lease, owner):
    assert (LAYOUT.lease_name(key), LAYOUT.owner_name(key)) == (lease, owner)


@spelled(30)
def owners(choose: Choices) -> Owner:
    def name() -> str:
        return choose.one_of((choose.text(4), "", "a" * 253, "a" * 254, "n\u00e41"))

    return Owner(name(), name())


@cases(100, owners)
def test_an_owner_comes_back_as_it_went_unless_it_could_never_be_shown(owner):
    shown = all(len(text) <= 253 and text.isprintable() for text in (owner.node, owner.boot_id))
    assert parse_owner(format_owner(owner)) == (owner if shown else None)


NAMES = (b"10.244.1.0-24", b"10.244.2.0-24&fd00::-64", b"fd00:1::-64", b"10.244.1.1-24", b"10.0.0.0-0", b"nonsense-24")
VALUES = (VALUE, VALUE[:60], b'{"Node":"a","BootID":"b"}', b"[" * 5000, b'{"PublicIP":1}')


def noise(choose: Choices, most: int) -> bytes:
    return choose.bytes(choose.below(most + 1))


def key(choose: Choices) -> bytes:
    name = choose.one_of((*NAMES, noise(choose, 20)))
    return choose.one_of((LAYOUT.leases.start + name, LAYOUT.owners.start + name, LAYOUT.config + name, noise(choose, 30)))


def value(choose: Choices) -> bytes:
    if choose.flag():
        return noise(choose, 40)
    document = {"PublicIP": "192.0.2.1", "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "56:4e:6b:10:49:50"}, "Node": "a", "BootID": "b"}
    return choose.one_of((*VALUES, json.dumps(junk.damaged(choose, document, ("VNI", "Node", "PublicIPv6", choose.text(9)))).encode()))


@spelled(150)
def entries(choose: Choices) -> tuple[bytes, bytes]:
    return choose.one_of((*NAMES, noise(choose, 40))), value(choose)


@cases(100, entries)
def test_whatever_stands_in_a_key_is_a_lease_or_junk_with_a_reason(entry):
    key, value = entry
    read = LAYOUT.read(rpc.KeyValue(key=LAYOUT.leases.start + key, value=value))
    assert isinstance(read, Lease) or (isinstance(read, Junk) and read.why and (read.key + read.why).isprintable())
    assert parse_owner(value) is None or isinstance(parse_owner(value), Owner)


@spelled(400)
def batches(choose: Choices) -> tuple[list[rpc.Event], int]:
    """Events of rising revisions, and how many of them come first."""
    events, revision = [], 1
    for _ in range(choose.below(13)):
        revision += choose.below(2)
        kv = rpc.KeyValue(key=key(choose), value=value(choose), lease=choose.one_of((0, 7)), mod_revision=revision)
        events.append(rpc.Event(type=choose.one_of((rpc.Event.PUT, rpc.Event.DELETE)), kv=kv))
    return events, choose.below(len(events) + 1)


@cases(100, batches)
def test_a_batch_in_fragments_says_the_same_as_the_whole_and_nothing_crashes_it(batch):
    events, cut = batch
    whole = Batch(LAYOUT)
    whole.add(events)
    split = Batch(LAYOUT)
    split.add(events[:cut])
    split.add(events[cut:])
    found = whole.take()
    assert split.take() == found and whole.take() == ()
    assert [e.revision for e in found] == [e.kv.mod_revision for e in events if LAYOUT.lease_name(e.kv.key) is not None]
    for event in found:
        assert event.key.isprintable() and not (event.record and event.junk)


def test_lease_and_owner_of_one_revision_belong_together():
    def kv(key, value, revision):
        return rpc.KeyValue(key=key, value=value, mod_revision=revision, create_revision=2, lease=5)

    name = "10.244.1.0-24"
    batch = Batch(LAYOUT)
    batch.add([rpc.Event(kv=kv(LAYOUT.lease_key(name), VALUE, 3)), rpc.Event(kv=kv(LAYOUT.owner_key(name), format_owner(Owner("a", "b")), 3))])
    batch.add([rpc.Event(kv=kv(LAYOUT.lease_key(name), VALUE, 4))])
    first, second = batch.take()
    assert (first.record.owner, second.record.owner) == (Owner("a", "b"), None)
    assert (first.record.revision, first.record.created, first.record.ttl_s) == (3, 2, UNKNOWN_S)


# ---- endpoints ------------------------------------------------------------------------------------------------------

TLS = Files(key=Path("k"), certificate=Path("c"))


@pytest.mark.parametrize(
    ("texts", "files", "shown"),
    [
        (("http://127.0.0.1:2379",), Files(), ["http://127.0.0.1:2379"]),
        (("http://127.0.0.1:4001", " http://127.0.0.1:2379", "http://127.0.0.1:4001"), Files(), ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]),
        (("https://etcd.example:2379/",), Files(), ["https://etcd.example:2379"]),
        (("https://[fd00::1]:2379",), TLS, ["https://[fd00::1]:2379"]),
        (("etcd.example",), TLS, ["https://etcd.example:2379"]),
        (("etcd.example:1",), Files(), ["http://etcd.example:1"]),
    ],
)
def test_endpoints(texts, files, shown):
    assert [str(endpoint) for endpoint in parse_endpoints(texts, files)] == shown


@pytest.mark.parametrize(
    ("texts", "files", "says"),
    [
        ((), Files(), "empty"),
        ((" ",), Files(), "empty"),
        (("ftp://a",), Files(), "'ftp://a'"),
        (("http://me:secret@a:99999",), Files(), "a URL with a user in it; give --etcd-username"),
        (("http://a:x",), Files(), "'http://a:x'"),
        (("http://",), Files(), "'http://'"),
        (("http://a/v2/keys",), Files(), "/v2/keys"),
        (("http://a",), Files(authority=Path("ca")), "speaks no TLS, but --etcd-cafile"),
        (("http://a",), TLS, "speaks no TLS, but --etcd-keyfile"),
        (("https://a",), Files(key=Path("k")), "give both"),
        (("https://a",), Files(certificate=Path("c")), "give both"),
    ],
)
def test_endpoints_that_cannot_be_used_are_named(texts, files, says):
    with pytest.raises(UsageError) as error:
        parse_endpoints(texts, files)
    assert says in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(("text", "says"), [(None, "No such file"), ("hello", "not a PEM file")])
def test_a_certificate_that_cannot_be_read_is_named(tmp_path, text, says):
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreUnavailable, match=f"--etcd-cafile {path}: {says}"):
        Files(authority=path).credentials()


@pytest.mark.parametrize(
    ("code", "details", "text"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: connect: Connection refused (111)",
            "Connection refused (111)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5Bfd00::1%5D:2379: Failed to connect to remote host: Connection refused",
            "Connection refused",
        ),
        (grpc.StatusCode.UNAVAILABLE, "DNS resolution failed for a.invalid:2379: Misformatted", "DNS resolution failed for a.invalid:2379: Misformatted"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", "no answer within 3 s"),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", "no leader"),
        (grpc.StatusCode.INTERNAL, "", "INTERNAL"),
        (grpc.StatusCode.UNKNOWN, "a\nb\x1b[31m" + "x" * 1000, "a b [31m" + "x" * 192),
    ],
)
def test_why_a_member_failed_is_one_short_line(code, details, text):
    assert reason(code, details) == text


# ---- the package ----------------------------------------------------------------------------------------------------


def test_without_the_extra_there_is_one_line_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    for name in [name for name in sys.modules if name.startswith("tweed.stores.etcd.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"--store etcd: .*grpc.*; install it with pip install 'tweed\[etcd\]'"):
        open_store(Settings(node_name="n", store="etcd"))
