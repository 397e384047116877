"""Where the Kubernetes API server is and how to prove who we are: a kubeconfig file, an address alone, or the pod that we run in."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tweed.errors import UsageError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Projected tokens are replaced on disk after 80 % of their life; an old one must not be used for longer than a minute.
TOKEN_S = 30.0


class Token:
    """A bearer token: as given, or in a file that is read again when it has been read a while ago."""

    def __init__(self, text: str = "", file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = text
        self.file = file
        self.clock = clock
        self.read_at = -TOKEN_S

    def __call__(self) -> str:
        """The token now, "" without one. Raises OSError where its file cannot be read and never could."""
        if self.file is not None and self.clock() - self.read_at >= TOKEN_S:
            try:
                self.text, self.read_at = self.file.read_text().strip(), self.clock()
            except OSError:
                if not self.text:
                    raise
        return self.text

    def forget(self) -> bool:
        """After a refusal: True when there may be another one in the file."""
        self.read_at = -TOKEN_S
        return self.file is not None


class Access(msgspec.Struct, frozen=True):
    """`server`: URL without a slash at its end. `tls` None: plain HTTP. `basic`: user and password in base64, "" without."""

    server: str
    token: Token
    tls: ssl.SSLContext | None = None
    tls_name: str = ""
    basic: str = ""

    def headers(self) -> dict[str, str]:
        """Raises OSError where the token cannot be read."""
        if token := self.token():
            return {"Authorization": f"Bearer {token}"}
        return {"Authorization": f"Basic {self.basic}"} if self.basic else {}


def find_access(api_url: str, kubeconfig: Path | None, environment: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Access:
    """flannel's order: the kubeconfig file, whose address `--kube-api-url` replaces; that address alone; else the pod's service account.

    Raises UsageError for what cannot be used.
    """
    if kubeconfig is not None:
        return read_kubeconfig(kubeconfig, api_url)
    if api_url:
        return Access(_server(api_url, "--kube-api-url"), Token(), tls_context() if api_url.startswith("https:") else None)
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise UsageError("--store kube: this is no pod (KUBERNETES_SERVICE_HOST is not set): give --kubeconfig-file FILE, or --kube-api-url URL")
    if not (account / "token").exists():
        raise UsageError(f"--store kube: {account / 'token'} is missing: the pod needs a service account (automountServiceAccountToken)")
    host = f"[{host}]" if ":" in host else host
    return Access(f"https://{host}:{port}", Token(file=account / "token"), tls_context(ca_file=account / "ca.crt"))


# ---- kubeconfig -----------------------------------------------------------------------------------------------------


def read_kubeconfig(path: Path, api_url: str = "") -> Access:
    """The current context of a kubeconfig file. Raises UsageError naming the file and the key."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--kubeconfig-file {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    config = _document(text, path)
    try:
        context = _named(config, "contexts", "context", _text(config, "current-context"))
        cluster = _named(config, "clusters", "cluster", _text(context, "cluster"))
        user = _named(config, "users", "user", _text(context, "user")) if context.get("user") else {}
        for key, instead in (("exec", "a token, a client certificate or tokenFile"), ("auth-provider", "a token, a client certificate or tokenFile")):
            if user.get(key):
                raise ValueError(f"user.{key}: tweed runs no credential plugins; use {instead}")
        if cluster.get("proxy-url"):
            raise ValueError("cluster.proxy-url: tweed uses no proxy; give the API server's own address")
        server = _server(api_url or _text(cluster, "server"), "cluster.server")
        token_file = _text(user, "tokenFile")
        token = Token(file=path.parent / token_file) if token_file else Token(_text(user, "token"))
        password = f"{_text(user, 'username')}:{_text(user, 'password')}"
        return Access(
            server,
            token,
            _kubeconfig_tls(cluster, user, path.parent) if server.startswith("https:") else None,
            _text(cluster, "tls-server-name"),
            base64.b64encode(password.encode()).decode() if user.get("username") else "",
        )
    except ValueError as error:
        raise UsageError(f"--kubeconfig-file {path}: {error}") from None


def _document(text: str, path: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)  # JSON is YAML, and needs no library
    except (msgspec.DecodeError, RecursionError):
        try:
            import yaml
        except ImportError:
            raise UsageError(f"--kubeconfig-file {path}: to read YAML tweed needs PyYAML: pip install 'tweed[kube]', or write the file as JSON") from None
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError):
            raise UsageError(f"--kubeconfig-file {path}: is neither YAML nor JSON") from None
    if not isinstance(value, dict):
        raise UsageError(f"--kubeconfig-file {path}: is no kubeconfig")
    return value


def _named(config: dict[str, Any], plural: str, singular: str, name: str) -> dict[str, Any]:
    """`{"name": name, singular: {...}}` in the list `plural`."""
    entries = config.get(plural)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name:
            value = entry.get(singular)
            if isinstance(value, dict):
                return value
    raise ValueError(f"{plural}: has no {singular} named {name!r}")


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected a string")
    return value


def _server(url: str, what: str) -> str:
    if "@" in url:  # not said again: logs are read by others
        raise UsageError(f"{what}: a URL with a user in it; write user and password, or a token, into a kubeconfig file")
    if not url.startswith(("http://", "https://")) or any(c.isspace() for c in url):
        raise UsageError(f"{what} {url!r}: use https://HOST:PORT")
    return url.rstrip("/")


# ---- TLS ----------------------------------------------------------------------------------------------------------


def tls_context(ca_file: Path | None = None, ca_data: str | None = None, verify: bool = True) -> ssl.SSLContext:
    """Trusts these authorities, the system's without any. Raises UsageError."""
    try:
        context = ssl.create_default_context(cafile=ca_file, cadata=ca_data)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"CA certificates {ca_file or ''}: {error.strerror or error}") from None
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _kubeconfig_tls(cluster: dict[str, Any], user: dict[str, Any], directory: Path) -> ssl.SSLContext:
    authority = _data(cluster, "certificate-authority-data")
    file = _text(cluster, "certificate-authority")
    context = tls_context(directory / file if file and authority is None else None, authority, cluster.get("insecure-skip-tls-verify") is not True)
    certificate, key = (_pem(user, name, directory) for name in ("client-certificate", "client-key"))
    if (certificate is None) != (key is None):
        raise ValueError("user: client-certificate and client-key belong together")
    if certificate is not None and key is not None:
        # The ssl module reads files only. This one has no name and is gone when it is closed.
        with open(os.memfd_create("client"), "wb") as file_in_memory:
            file_in_memory.write(certificate + b"\n" + key)
            file_in_memory.flush()
            try:
                context.load_cert_chain(f"/proc/self/fd/{file_in_memory.fileno()}", password="")
            except (ssl.SSLError, OSError):
                raise ValueError("user: client-certificate and client-key are no PEM certificate and its key") from None
    return context


def _data(fields: dict[str, Any], key: str) -> str | None:
    text = _text(fields, key)
    if not text:
        return None
    try:
        return base64.b64decode(text, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError(f"{key}: not base64 of a PEM text") from None


def _pem(fields: dict[str, Any], key: str, directory: Path) -> bytes | None:
    """`key`-data before the file `key`."""
    if (data := _data(fields, f"{key}-data")) is not None:
        return data.encode()
    if not (name := _text(fields, key)):
        return None
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise ValueError(f"{key} {directory / name}: {error.strerror}") from None
