"""Settings: one row per form and source, and one per error line."""

from pathlib import Path

import pytest

from tweed.config import load, selects_store, usage
from tweed.errors import UsageError


def settings(*words: str, environment: dict[str, str] | None = None, file: str | None = None):
    def read(path: Path) -> str:
        if file is None:
            raise FileNotFoundError(path)
        return file

    return load(words, environment or {}, "host7", read)


@pytest.mark.parametrize("words", [["--iface", "ens33"], ["-iface", "ens33"], ["--iface=ens33"], ["-iface=ens33"]])
def test_gos_forms_of_a_flag_are_one(words):
    assert settings(*words)[0].iface == ("ens33",)


@pytest.mark.parametrize(
    ("words", "value"),
    [([], False), (["--ip-masq"], True), (["-ip-masq=true"], True), (["--ip-masq=false"], False), (["--ip-masq=0"], False), (["--ip-masq=T"], True)],
)
def test_booleans_take_a_value_only_with_an_equals_sign(words, value):
    assert settings(*words, "--iface", "x")[0].ip_masq is value


def test_later_sources_win_flag_over_tweed_over_flanneld_over_file():
    file = 'public-ip = "192.0.2.1"\nresync = 1\niface = ["a", "b"]\nhealthz-port = 1'
    environment = {"FLANNELD_RESYNC": "2", "TWEED_HEALTHZ_PORT": "3", "FLANNELD_HEALTHZ_PORT": "2"}
    found, warnings = settings("--healthz-port", "4", environment=environment, file=file)
    assert (found.public_ip, found.resync, found.iface, found.healthz_port, warnings) == (bytes((192, 0, 2, 1)), 2.0, ("a", "b"), 4, [])
    assert settings(environment=environment, file=file)[0].healthz_port == 3


def test_repeatable_flags_add_up_and_replace_those_of_a_weaker_source():
    assert settings("--iface", "a", "--iface", "b", environment={"TWEED_IFACE": "c"})[0].iface == ("a", "b")


@pytest.mark.parametrize(
    ("words", "environment", "name"),
    [(["--node-name", "n1"], {"NODE_NAME": "n2"}, "n1"), ([], {"NODE_NAME": "n2"}, "n2"), ([], {}, "host7")],
)
def test_node_name(words, environment, name):
    assert settings(*words, environment=environment)[0].node_name == name


def test_the_default_store_lies_in_the_state_directory():
    assert settings("--state-dir", "/x/y")[0].store == "sqlite:///x/y/store.db"


ENDPOINTS = "https://a:2379, https://b:2379"


@pytest.mark.parametrize(
    ("words", "environment", "store", "endpoints"),
    [
        (["--etcd-endpoints", ENDPOINTS], {}, "etcd", ("https://a:2379", "https://b:2379")),
        (["-etcd-endpoints=http://c:1"], {"TWEED_ETCD_ENDPOINTS": ENDPOINTS}, "etcd", ("http://c:1",)),
        ([], {"FLANNELD_ETCD_ENDPOINTS": ENDPOINTS}, "etcd", ("https://a:2379", "https://b:2379")),
        (["--store", "etcd"], {}, "etcd", ("http://127.0.0.1:4001", "http://127.0.0.1:2379")),
        (["--etcd-endpoints="], {}, "etcd", ()),
        ([], {"FLANNELD_ETCD_ENDPOINTS": "", "TWEED_STATE_DIR": "/x"}, "sqlite:///x/store.db", ("http://127.0.0.1:4001", "http://127.0.0.1:2379")),
        (["--store=sqlite:///x"], {"FLANNELD_ETCD_ENDPOINTS": ENDPOINTS}, "sqlite:///x", ("https://a:2379", "https://b:2379")),
    ],
)
def test_endpoints_choose_etcd_unless_a_store_is_named(words, environment, store, endpoints):
    found, warnings = settings(*words, environment=environment)
    assert (found.store, found.etcd_endpoints, warnings) == (store, endpoints, [])


def test_the_flags_for_others_open_the_same_store_and_hold_no_password():
    files = ["--etcd-cafile=/ca", "--etcd-certfile=/c", "--etcd-keyfile=/k"]
    found, _ = settings("--etcd-endpoints=https://a:1,https://b:2", "--etcd-prefix=/p", *files, "--etcd-username=me", "--etcd-password=secret")
    assert "secret" not in " ".join(found.store_flags)
    again, _ = settings(*found.store_flags, environment={"TWEED_ETCD_PASSWORD": "secret"})
    assert again == found
    assert settings(*settings()[0].store_flags)[0] == settings()[0]


@pytest.mark.parametrize(
    ("words", "environment", "selects"),
    [
        ([], {}, False),
        (["--store=etcd"], {}, True),
        (["--etcd-endpoints=x"], {}, True),
        ([], {"FLANNELD_ETCD_ENDPOINTS": "x"}, True),
        ([], {"TWEED_STORE": "x"}, True),
        (["--etcd-prefix=/p"], {"TWEED_ETCD_PASSWORD": "x"}, False),
    ],
)
def test_which_flags_say_what_store_is_meant(words, environment, selects):
    assert selects_store(words, environment) is selects


def test_flags_without_meaning_are_accepted_with_one_warning_each():
    found, warnings = settings("--iptables-resync=5", "-v", "3", "-logtostderr", "--iface", "ens33")
    assert found.iface == ("ens33",)
    assert len(warnings) == 3 and all("has no meaning" in w for w in warnings)


def test_kube_subnet_mgr_is_the_kubernetes_store():
    assert settings("--kube-subnet-mgr=false")[0].store.startswith("sqlite://")
    assert settings("--kube-subnet-mgr")[0].store == settings("--store", "kube")[0].store == "kube"
    assert settings(environment={"FLANNELD_KUBE_SUBNET_MGR": "true"})[0].store == "kube"


@pytest.mark.parametrize(
    ("words", "environment", "pod"),
    [
        (["--kube-subnet-mgr"], {}, ("kube-system", "tweed-x")),
        (["--kube-subnet-mgr"], {"NODE_NAME": "n"}, None),
        (["--kube-subnet-mgr", "--node-name", "n"], {}, None),
        ([], {}, None),
    ],
)
def test_without_a_node_name_kubernetes_is_asked_for_the_pods(words, environment, pod):
    assert settings(*words, environment={"POD_NAME": "tweed-x", "POD_NAMESPACE": "kube-system", **environment})[0].pod == pod


def test_how_another_command_opens_the_same_kubernetes_store():
    words = ["--store=kube", "--kubeconfig-file=/k", "--kube-api-url=https://a:1", "--kube-annotation-prefix=a.b", "--net-config-path=/n"]
    flags = settings(*words)[0].store_flags
    assert set(flags) == set(words) and settings(*flags)[0].kubeconfig_file == Path("/k")


@pytest.mark.parametrize(
    ("words", "environment", "file", "says"),
    [
        (["--nonsense"], {}, None, "unknown flag --nonsense"),
        (["stray"], {}, None, "'stray'"),
        (["--iface"], {}, None, "--iface: needs a value"),
        (["--healthz-port", "65536"], {}, None, "--healthz-port='65536'"),
        (["--healthz-port", "-1"], {}, None, "--healthz-port='-1'"),
        (["--public-ip", "fd00::1"], {}, None, "use an IPv4 address"),
        (["--public-ipv6", "10.0.0.1"], {}, None, "use an IPv6 address"),
        (["--public-ip", "x"], {}, None, "--public-ip='x'"),
        (["--subnet-lease-renew-margin", "0"], {}, None, "1 to 1439"),
        (["--subnet-lease-renew-margin", "1440"], {}, None, "1 to 1439"),
        (["--ip-masq=maybe"], {}, None, "true or false"),
        (["--resync", "-3"], {}, None, "--resync='-3'"),
        (["--node-name", "a b"], {}, None, "--node-name 'a b'"),
        (["--kube-subnet-mgr", "--store", "sqlite:///x"], {}, None, "--kube-subnet-mgr and --store='sqlite:///x': give one of them"),
        ([], {"FLANNELD_IP_MASQ": "ja"}, None, "FLANNELD_IP_MASQ='ja'"),
        ([], {}, "nonsense = 1", "unknown key 'nonsense'"),
        ([], {}, "public-ip = [", "agent.toml"),
        ([], {}, 'public-ip = ["192.0.2.1", "192.0.2.2"]', "expected one value"),
        (["--config", "/nowhere"], {}, None, "/nowhere: no such file"),
    ],
)
def test_a_wrong_value_is_named_with_its_source(words, environment, file, says):
    with pytest.raises(UsageError) as error:
        settings(*words, environment=environment, file=file)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_help_names_every_flag_that_does_something():
    assert all(f"--{name}" in usage() for name in ("iface", "store", "ip-masq", "resync", "dry-run"))
    assert "iptables-resync" not in usage()
