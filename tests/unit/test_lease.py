"""Leases as flannel stores them: read and written to the byte, and whatever else stands there refused in one line."""

import json

import pytest
from tests.unit import junk
from tests.unit.spelling import Choices, cases, spelled

from tweed.addr import Prefix, parse_address, parse_mac
from tweed.model import Endpoint, Lease
from tweed.wire.lease import format_lease, parse_key, parse_lease

P = Prefix.parse
MAC, MAC6 = parse_mac("56:4e:6b:10:49:50"), parse_mac("1a:00:00:00:00:06")
V4 = Endpoint(P("10.5.52.0/24"), parse_address("192.0.2.1"), MAC, 1)
V6 = Endpoint(P("fd00:12:13::/56"), parse_address("2001:db8::1"), MAC6, 1)

# What flannel writes, byte for byte.
RECORDS = [
    (
        "10.5.52.0-24",
        '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"}}',
        Lease(V4),
    ),
    (
        "10.5.52.0-24&fd00:12:13::-56",
        '{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:4e:6b:10:49:50"},'
        '"BackendV6Data":{"VNI":1,"VtepMAC":"1a:00:00:00:00:06"}}',
        Lease(V4, V6),
    ),
    (
        "fd00:12:13::-56",
        '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"1a:00:00:00:00:06"}}',
        Lease(None, V6),
    ),
    ("10.5.52.0-24", '{"PublicIP":"192.0.2.1","PublicIPv6":null}', Lease(Endpoint(V4.subnet, V4.public_ip), backend="")),
    ("10.5.52.0-24", '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}', Lease(Endpoint(V4.subnet, V4.public_ip), backend="host-gw")),
]


@pytest.mark.parametrize(("key", "value", "lease"), RECORDS)
def test_leases_read_and_write_the_bytes_of_flannel(key, value, lease):
    assert parse_lease(key, value) == lease
    assert parse_lease(key, value.encode()) == lease
    assert format_lease(lease) == value
    assert lease.key == key


@pytest.mark.parametrize(
    ("value", "lease"),
    [
        ('{"publicip":"192.0.2.1","backendtype":"vxlan","BACKENDDATA":{"vni":1,"vtepmac":"56-4E-6B-10-49-50"},"x":{}}', Lease(V4)),
        ("{}", Lease(Endpoint(V4.subnet), backend="")),
        ('{"PublicIP":"0.0.0.0","BackendType":"vxlan","BackendData":null}', Lease(Endpoint(V4.subnet))),
        (
            '{"PublicIP":"192.0.2.1","BackendType":"wireguard","BackendData":{"PublicKey":"x","Port":51820}}',
            Lease(Endpoint(V4.subnet, V4.public_ip), backend="wireguard"),
        ),
        ('{"PublicIP":"192.0.2.1","BackendType":"extension","BackendData":"text"}', Lease(Endpoint(V4.subnet, V4.public_ip), backend="extension")),
    ],
)
def test_leases_are_read_as_leniently_as_flannel_does(value, lease):
    assert parse_lease("10.5.52.0-24", value) == lease


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "does not end in -LENGTH"),
        ("10.5.52.0", "does not end in -LENGTH"),
        ("10.5.52.0-", "does not end in -LENGTH"),
        ("10.5.52.0-٢٤", "does not end in -LENGTH"),
        ("10.5.52.0-024", "usual form"),
        ("10.5.52.0-0", "length 0"),
        ("10.5.52.0-32", "length 32"),
        ("10.5.52.0-99", "length 99"),
        ("10.5.52.1-24", "host bits"),
        ("10.5.052.0-24", "not an IP address"),
        ("10x5x52x0-24", "not an IP address"),
        (" 10.5.52.0-24", "usual form"),
        ("10.5.52.0-24&", "does not end in -LENGTH"),
        ("10.5.52.0-24&10.5.53.0-24", "not one IPv4 subnet"),
        ("fd00::-64&10.5.52.0-24", "not one IPv4 subnet"),
        ("fd00::-64&fd01::-64", "not one IPv4 subnet"),
        ("10.5.52.0-24&FD00::-64", "usual form, 10.5.52.0-24&fd00::-64"),
        ("10.5.52.0-24&fd00::-128", "length 128"),
        ("1" * 100 + "-24", "longer than any subnet"),
    ],
)
def test_a_key_that_flannel_would_not_write_is_refused(key, why):
    with pytest.raises(ValueError, match=why):
        parse_key(key)


VXLAN = '{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":%s}'
BAD_VALUES = [
    (b"", "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    ("nonsense", "is not JSON"),
    ("{} {}", "is not JSON"),
    ("null", "null is not a JSON object"),
    ('"' + "x" * 70000 + '"', "is 70002 bytes long, more than 65536"),
    ("[" * 30000, "is not JSON"),
    ('{"a":' * 10000 + "1" + "}" * 10000, "nested too deeply"),
    ('{"PublicIP":5}', "PublicIP 5: expected a string"),
    ('{"PublicIP":"2001:db8::1"}', 'PublicIP "2001:db8::1": not an IPv4 address'),
    ('{"PublicIP":"host"}', "not an IPv4 address"),
    ('{"PublicIP":"' + "9" * 500 + '"}', r"9\.\.\.: not an IPv4 address"),
    ('{"BackendType":7}', "BackendType 7: expected a string"),
    ('{"BackendType":"a\\nb"}', "not a backend's name"),
    (VXLAN % '"x"', 'BackendData "x": expected an object'),
    (VXLAN % '{"VtepMAC":1}', "VtepMAC 1: expected a string"),
    (VXLAN % '{"VtepMAC":"zz"}', "not a MAC address"),
    (VXLAN % '{"VtepMAC":"56:4e:6b:10:49:50:00:00"}', "not a MAC address"),
    (VXLAN % '{"VtepMAC":"01:00:5e:00:00:01"}', "group bit or all zero"),
    (VXLAN % '{"VtepMAC":"00:00:00:00:00:00"}', "group bit or all zero"),
    (VXLAN % '{"VNI":"1"}', "not a VNI"),
    (VXLAN % '{"VNI":-1}', "not a VNI"),
    (VXLAN % ('{"VNI":1' + "0" * 40 + "}"), "not a VNI"),
]


@pytest.mark.parametrize(("value", "why"), BAD_VALUES, ids=[str(i) for i in range(len(BAD_VALUES))])
def test_a_value_that_is_no_lease_is_refused_in_one_short_line(value, why):
    with pytest.raises(ValueError, match=why) as error:
        parse_lease("10.5.52.0-24", value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_an_ipv4_address_as_the_ipv6_one_is_refused():
    with pytest.raises(ValueError, match=r'PublicIPv6 "192\.0\.2\.1": not an IPv6 address'):
        parse_lease("10.5.52.0-24&fd00::-64", '{"PublicIPv6":"192.0.2.1"}')


def endpoint(choose: Choices, size: int) -> Endpoint:
    subnet = Prefix(choose.bytes(size), choose.number(1, 8 * size - 1)).network
    host = choose.bytes(size)
    m = bytearray(choose.bytes(6))
    m[0] = m[0] & 0xFE or 2  # a device's address
    vtep = choose.one_of([(None, None), (bytes(m), choose.number(0, 2**24 - 1))])
    return Endpoint(subnet, host if any(host) and choose.flag() else None, *vtep)


@spelled(70)
def leases(choose: Choices) -> Lease:
    families = choose.one_of([(4,), (4, 16), (16,)])
    return Lease(*(endpoint(choose, size) if size in families else None for size in (4, 16)))


@cases(27, leases)
def test_every_lease_survives_the_round_trip(lease):
    assert parse_lease(lease.key, format_lease(lease)) == lease


@cases(27, leases)
def test_the_written_json_is_compact_and_ordered(lease):
    value = format_lease(lease)
    order = ["PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data"]
    keys = list(json.loads(value))
    assert keys == [k for k in order if k in keys]
    assert value == json.dumps(json.loads(value), separators=(",", ":"))


WORDS = ("PublicIP", "publicIPv6", "BackendType", "BackendData", "VNI", "VtepMAC", "192.0.2.1", "vxlan")


DOCUMENTS = [*(value for _, value, _ in RECORDS), VXLAN % '{"VtepMAC":"zz"}', VXLAN % '{"VtepMAC":"01:00:5e:00:00:01"}']


@spelled(150)
def junk_leases(choose: Choices) -> tuple[str, bytes]:
    key = choose.one_of(["10.5.52.0-24", "10.5.52.0-24&fd00::-64", "fd00::-64", choose.text(20)])
    if choose.below(4) == 3:
        return key, choose.bytes(choose.below(60))
    return key, json.dumps(junk.damaged(choose, json.loads(choose.one_of(DOCUMENTS)), (*WORDS, choose.text(20)))).encode()


@cases(200, junk_leases)
def test_junk_is_a_lease_or_refused_in_one_line(record):
    key, value = record
    try:
        lease = parse_lease(key, value)
    except ValueError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert lease.key == key
