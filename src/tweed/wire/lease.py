"""A lease as flannel stores it: a key that names its subnets, and JSON (flannel v0.28).

What flannel reads leniently is read leniently; what is no lease is refused with a reason in one line.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tweed.addr import Prefix, format_address, format_mac, is_unicast_mac, parse_address, parse_mac
from tweed.model import Endpoint, Lease, subnet_key
from tweed.wire.gojson import field, lower_keys, read_object, shown


def parse_key(key: str) -> tuple[Prefix | None, Prefix | None]:
    """The IPv4 and IPv6 subnets that a lease's key names (without its path). Raises ValueError for a key that flannel would not write.

    Stricter than flannel's own pattern: a second spelling of a key would be a second lease of the same subnet.
    """
    if len(key) > 80:
        raise ValueError("the key is longer than any subnet")
    parts = key.split("&")
    subnets = [_key_part(part) for part in parts]
    v4 = subnets[0] if subnets[0].family == 4 else None
    v6 = subnets[-1] if subnets[-1].family == 6 else None
    if len(parts) != (v4 is not None) + (v6 is not None):
        raise ValueError("the key is not one IPv4 subnet, one IPv6 subnet, or both joined by &")
    if subnet_key(v4, v6) != key:
        raise ValueError(f"the key is not in its usual form, {subnet_key(v4, v6)}")
    return v4, v6


def _key_part(part: str) -> Prefix:
    address, _, length = part.rpartition("-")
    if not (1 <= len(length) <= 3 and length.isascii() and length.isdecimal()):
        raise ValueError("the key does not end in -LENGTH")
    subnet = Prefix(parse_address(address), int(length))
    # flannel reads the length as a number of 5 or 7 bits; 0 would be a lease of every address.
    if not 0 < subnet.length < subnet.bits:
        raise ValueError(f"a subnet cannot have length {length}")
    if subnet.network != subnet:
        raise ValueError("the key has host bits")
    return subnet


def parse_lease(key: str, value: bytes | str) -> Lease:
    """A lease from its key (without its path) and flannel's JSON. Raises ValueError with a one-line reason for whatever is no lease.

    Unset addresses ("", 0.0.0.0, null) are None. A backend other than vxlan has no MAC here; its data is not looked at.
    """
    subnet, subnet6 = parse_key(key)
    return lease_of(subnet, subnet6, read_object(value))


def lease_of(subnet: Prefix | None, subnet6: Prefix | None, fields: dict[str, Any]) -> Lease:
    """A lease of these subnets from flannel's fields, their names in lower case. Raises ValueError."""
    backend = field(fields, "BackendType", str, "")
    if len(backend) > 32 or not backend.isprintable():
        raise ValueError(f"BackendType {shown(backend)}: not a backend's name")
    vxlan = backend == "vxlan"
    v4 = v6 = None
    if subnet is not None:
        v4 = Endpoint(subnet, _public_ip(fields, "PublicIP", 4), *(_vtep(fields, "BackendData") if vxlan else ()))
    if subnet6 is not None:
        v6 = Endpoint(subnet6, _public_ip(fields, "PublicIPv6", 16), *(_vtep(fields, "BackendV6Data") if vxlan else ()))
    return Lease(v4, v6, backend)


def _public_ip(fields: dict[str, Any], key: str, size: int) -> bytes | None:
    text = field(fields, key, str, "")
    if not text:
        return None
    try:
        address = parse_address(text)
    except ValueError:
        address = b""
    if len(address) != size:
        raise ValueError(f"{key} {shown(text)}: not an IPv{4 if size == 4 else 6} address")
    return address if any(address) else None


def _vtep(fields: dict[str, Any], key: str) -> tuple[bytes | None, int | None]:
    data = fields.get(key.lower())
    if data is None:
        return None, None
    if not isinstance(data, dict):
        raise ValueError(f"{key} {shown(data)}: expected an object")
    data = lower_keys(data)
    vni = data.get("vni")
    if vni is not None and (type(vni) is not int or not 0 <= vni < 1 << 32):
        raise ValueError(f"{key}.VNI {shown(vni)}: not a VNI")
    text = field(data, "VtepMAC", str, "")
    if not text:
        return None, vni
    try:
        mac = parse_mac(text)
    except ValueError:
        raise ValueError(f"{key}.VtepMAC {shown(text)}: not a MAC address") from None
    if not is_unicast_mac(mac):
        raise ValueError(f"{key}.VtepMAC {text}: no device can have this address (group bit or all zero)")
    return mac, vni


def format_lease(lease: Lease) -> str:
    """The JSON that flannel writes for it, byte for byte (Go's field order, compact)."""
    fields: dict[str, Any] = {
        "PublicIP": format_address(lease.v4.public_ip) if lease.v4 and lease.v4.public_ip else "0.0.0.0",
        "PublicIPv6": format_address(lease.v6.public_ip) if lease.v6 and lease.v6.public_ip else None,
    }
    if lease.backend:
        fields["BackendType"] = lease.backend
    for key, endpoint in (("BackendData", lease.v4), ("BackendV6Data", lease.v6)):
        if endpoint is not None and endpoint.mac is not None:
            fields[key] = _backend_data(endpoint)
    return msgspec.json.encode(fields).decode()


def format_backend_data(endpoint: Endpoint) -> str:
    """One family's BackendData alone, as flannel writes it into an annotation: no blanks, and exactly one string, since that is all its own reader takes."""
    return msgspec.json.encode(_backend_data(endpoint)).decode() if endpoint.mac is not None else "null"


def _backend_data(endpoint: Endpoint) -> dict[str, Any]:
    assert endpoint.mac is not None
    return {"VNI": endpoint.vni or 0, "VtepMAC": format_mac(endpoint.mac)}
