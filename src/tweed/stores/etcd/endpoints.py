"""Where the members of an etcd cluster are and how they are spoken to: URLs, certificates, and channels made from them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import grpc
import msgspec

from tweed.errors import StoreUnavailable, UsageError

PORT = 2379
MESSAGE_MAX = 16 << 20  # bytes of one answer: a page of leases is a few hundred kilobytes
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX),
    # A peer that is gone without a word is noticed after 15 s. etcd ends connections that ping more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # else a minute, whatever the line above says
    ("grpc.http2.max_pings_without_data", 0),
    # Channels to one address would share its back-off, up to two minutes long. When to try again is for the caller to say.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),  # the way to the nodes' own store never leads through a proxy for the web
    ("grpc.enable_retries", 0),
)


class Endpoint(msgspec.Struct, frozen=True):
    """One member's client URL. `target` is gRPC's name for its address."""

    target: str
    tls: bool

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.target}"


class Files(msgspec.Struct, frozen=True):
    """The PEM files of TLS, read anew for each connection since certificates are replaced while agents run."""

    key: Path | None = None
    certificate: Path | None = None
    authority: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises StoreUnavailable for a file that cannot be used now."""
        texts = []
        for flag, path in (("cafile", self.authority), ("keyfile", self.key), ("certfile", self.certificate)):
            try:
                text = path.read_bytes() if path is not None else None
            except OSError as error:
                raise StoreUnavailable(f"--etcd-{flag} {path}: {error.strerror}") from None
            if text is not None and b"-----BEGIN " not in text:
                raise StoreUnavailable(f"--etcd-{flag} {path}: not a PEM file")
            texts.append(text)
        return grpc.ssl_channel_credentials(*texts)


def parse_endpoints(texts: tuple[str, ...], files: Files) -> tuple[Endpoint, ...]:
    """The members that `--etcd-endpoints` names. Without a scheme, a client certificate means https. Raises UsageError."""
    if (files.key is None) != (files.certificate is None):
        raise UsageError("--etcd-keyfile and --etcd-certfile: give both, or none of them")
    found = tuple(dict.fromkeys(parse_endpoint(text.strip(), files.key is not None) for text in texts if text.strip()))
    if not found:
        raise UsageError("--etcd-endpoints: empty; give the members' client URLs, such as https://192.0.2.1:2379")
    if not any(endpoint.tls for endpoint in found) and (files.authority or files.key):
        raise UsageError(f"--etcd-endpoints {found[0]}: speaks no TLS, but --etcd-{'cafile' if files.authority else 'keyfile'} is given; use https:// there")
    return found


def parse_endpoint(text: str, tls: bool) -> Endpoint:
    try:
        parts = urlsplit(text if "://" in text else f"{'https' if tls else 'http'}://{text}")
        port = parts.port or PORT
    except ValueError:
        parts, port = urlsplit(""), 0
    if "@" in text:  # not said again: logs are read by others
        raise UsageError("--etcd-endpoints: a URL with a user in it; give --etcd-username, and the password in TWEED_ETCD_PASSWORD")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(f"--etcd-endpoints {text!r}: use http://HOST:PORT or https://HOST:PORT, several joined by commas")
    return Endpoint(f"[{parts.hostname}]:{port}" if ":" in parts.hostname else f"{parts.hostname}:{port}", parts.scheme == "https")


def open_channel(endpoint: Endpoint, files: Files) -> grpc.aio.Channel:
    if endpoint.tls:
        return grpc.aio.secure_channel(endpoint.target, files.credentials(), options=CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
