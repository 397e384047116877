"""How the API server is found and trusted: kubeconfig files in all their forms, a pod's service account, TLS with real certificates."""

import asyncio
import base64
import ssl

import msgspec
import pytest
import trustme
import yaml
from aiohttp import web

from tweed.errors import StoreUnavailable, UsageError
from tweed.stores.kube.access import TOKEN_S, Token, find_access, read_kubeconfig
from tweed.stores.kube.api import KubeApi


def kubeconfig(path, cluster=None, user=None, write=yaml.safe_dump, **top):
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [
            {"name": "other", "cluster": {"server": "http://other"}},
            {"name": "c", "cluster": {"server": "https://192.0.2.1:6443", **(cluster or {})}},
        ],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "x"}}],
    } | top
    path.write_text(write(document))
    return path


def b64(data):
    return base64.b64encode(data).decode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config"


# ---- kubeconfig -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "headers"),
    [
        ({}, {}),
        ({"token": "secret"}, {"Authorization": "Bearer secret"}),
        ({"username": "admin", "password": "p:w"}, {"Authorization": f"Basic {b64(b'admin:p:w')}"}),
        ({"token": "t", "username": "admin", "password": "pw"}, {"Authorization": "Bearer t"}),
    ],
)
def test_who_we_are(path, user, headers):
    assert read_kubeconfig(kubeconfig(path, user=user)).headers() == headers


def test_a_token_file_is_found_beside_the_kubeconfig(path, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    assert read_kubeconfig(kubeconfig(path, user={"tokenFile": "token"})).headers() == {"Authorization": "Bearer secret"}


def test_the_current_context_says_which_server_and_api_url_replaces_it(path):
    assert read_kubeconfig(kubeconfig(path)).server == "https://192.0.2.1:6443"
    assert read_kubeconfig(kubeconfig(path), "https://192.0.2.9:6443/").server == "https://192.0.2.9:6443"


def test_json_is_read_without_yaml(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert read_kubeconfig(kubeconfig(path, write=lambda d: msgspec.json.encode(d).decode())).server == "https://192.0.2.1:6443"
    with pytest.raises(UsageError, match=r"pip install 'tweed\[kube\]'"):
        read_kubeconfig(kubeconfig(path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"user": {"exec": {"command": "aws"}}}, r"user\.exec: tweed runs no credential plugins"),
        ({"user": {"auth-provider": {"name": "gcp"}}}, r"user\.auth-provider: tweed runs no credential plugins"),
        ({"cluster": {"proxy-url": "http://p"}}, "proxy-url"),
        ({"cluster": {"server": "192.0.2.1"}}, "use https://HOST:PORT"),
        ({"cluster": {"server": 7}}, "server: expected a string"),
        ({"cluster": {"certificate-authority-data": "!"}}, "certificate-authority-data: not base64"),
        ({"cluster": {"certificate-authority": "/nowhere"}}, "No such file"),
        ({"user": {"client-certificate-data": b64(b"x")}}, "belong together"),
        ({"user": {"client-certificate-data": b64(b"x"), "client-key-data": b64(b"y")}}, "no PEM certificate"),
        ({"user": {"client-certificate": "/nowhere", "client-key": "/nowhere"}}, "client-certificate /nowhere: No such file"),
        ({"current-context": "there"}, "contexts: has no context named 'there'"),
        ({"users": []}, "users: has no user named 'u'"),
        ({"clusters": "x"}, "clusters: has no cluster named 'c'"),
        ({"contexts": [7]}, "contexts: has no context"),
        ({"cluster": {"server": "https://me:secret@192.0.2.1"}}, "cluster.server: a URL with a user in it; write"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_file(path, change, says):
    with pytest.raises(UsageError, match=says) as error:
        read_kubeconfig(kubeconfig(path, **change))
    assert "\n" not in str(error.value) and (str(path) in str(error.value) or "certificates" in str(error.value) or "server" in str(error.value))


@pytest.mark.parametrize("text", ["", "7", "[]", "a: [", "\x00", "{" * 10_000, "a: &a [*a]", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_kubeconfig_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(UsageError, match="--kubeconfig-file"):
        read_kubeconfig(path)


def test_a_kubeconfig_that_cannot_be_read(tmp_path):
    for path, why in ((tmp_path / "nowhere", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=why):
            read_kubeconfig(path)


# ---- a pod ----------------------------------------------------------------------------------------------------------


def test_a_pod_finds_its_server(tmp_path):
    authority = trustme.CA()
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "token").write_text("one")
    for host, server in (("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")):
        access = find_access("", None, {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"}, tmp_path)
        assert (access.server, access.headers()) == (server, {"Authorization": "Bearer one"}) and access.tls.verify_mode == ssl.CERT_REQUIRED


def test_outside_of_a_pod_it_is_said_what_to_give(tmp_path):
    with pytest.raises(UsageError, match="this is no pod"):
        find_access("", None, {}, tmp_path)
    with pytest.raises(UsageError, match="needs a service account"):
        find_access("", None, {"KUBERNETES_SERVICE_HOST": "a", "KUBERNETES_SERVICE_PORT": "1"}, tmp_path)
    assert find_access("http://127.0.0.1:8080/", None, {}, tmp_path).server == "http://127.0.0.1:8080"


def test_a_projected_token_is_read_again_within_a_minute_and_outlives_its_file(tmp_path):
    file, now = tmp_path / "token", [0.0]
    token = Token(file=file, clock=lambda: now[0])
    with pytest.raises(FileNotFoundError):
        token()
    file.write_text("one\n")
    assert token() == "one"
    file.write_text("two\n")
    now[0] = TOKEN_S - 1
    assert token() == "one"
    now[0] = TOKEN_S
    assert token() == "two" and TOKEN_S <= 60
    file.unlink()
    now[0] = 1000.0
    assert token() == "two"
    file.write_text("three")
    assert token.forget() and token() == "three" and not Token("fixed").forget()


# ---- TLS ------------------------------------------------------------------------------------------------------------


class Server:
    """An API server that takes client certificates of one authority only, and says whose it saw."""

    def __init__(self):
        self.authority, self.clients = trustme.CA(), trustme.CA()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert("api.example", "127.0.0.1").configure_cert(self.context)
        self.clients.configure_trust(self.context)
        self.context.verify_mode = ssl.CERT_OPTIONAL

    async def start(self):
        async def answer(request):
            certificate = request.transport.get_extra_info("peercert")
            return web.json_response({"seen": bool(certificate)})

        app = web.Application()
        app.add_routes([web.get("/who", answer)])
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=self.context).start()
        self.url = f"https://127.0.0.1:{self.runner.addresses[0][1]}"


@pytest.fixture
async def server():
    made = Server()
    await made.start()
    yield made
    await made.runner.cleanup()


async def who(access):
    api = KubeApi(access)
    try:
        return msgspec.json.decode(await asyncio.wait_for(api.ask("GET", "/who"), 20))["seen"]
    finally:
        await api.close()


@pytest.mark.parametrize("inline", [True, False])
async def test_certificates_in_files_and_inline(server, path, tmp_path, inline):
    certificate = server.clients.issue_cert("me")
    parts = {
        "certificate-authority": server.authority.cert_pem,
        "client-certificate": certificate.cert_chain_pems[0],
        "client-key": certificate.private_key_pem,
    }
    fields = {}
    for name, pem in parts.items():
        (tmp_path / name).write_bytes(pem.bytes())
        fields |= {f"{name}-data": b64(pem.bytes())} if inline else {name: name}
    cluster = {k: v for k, v in fields.items() if "authority" in k} | {"server": server.url}
    user = {k: v for k, v in fields.items() if "authority" not in k}
    assert await who(read_kubeconfig(kubeconfig(path, cluster, user))) is True
    assert await who(read_kubeconfig(kubeconfig(path, cluster))) is False


async def test_a_server_of_another_authority_or_name_is_not_trusted(server, path):
    other = {"certificate-authority-data": b64(trustme.CA().cert_pem.bytes()), "server": server.url}
    with pytest.raises(StoreUnavailable, match="certificate is not to be trusted"):
        await who(read_kubeconfig(kubeconfig(path, other)))
    right = {"certificate-authority-data": b64(server.authority.cert_pem.bytes()), "server": server.url}
    assert await who(read_kubeconfig(kubeconfig(path, right | {"tls-server-name": "api.example"}))) is False
    with pytest.raises(StoreUnavailable, match="certificate is not to be trusted"):
        await who(read_kubeconfig(kubeconfig(path, right | {"tls-server-name": "evil.example"})))
    assert await who(read_kubeconfig(kubeconfig(path, {"server": server.url, "insecure-skip-tls-verify": True}))) is False
