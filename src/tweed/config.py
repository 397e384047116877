"""The agent's settings: defaults, overridden by a file, `FLANNELD_…`, `TWEED_…` and flags, in that order.

Flags have flannel's names and Go's forms: `-iface x`, `--iface=x`; a boolean takes a value only with `=`
(`--ip-masq`, `--ip-masq=false`). Every error names the key, the value and where it came from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from tweed.addr import family, parse_address
from tweed.errors import UsageError

DEFAULT_RUN_DIR = Path("/run/tweed")
DEFAULT_STATE_DIR = Path("/var/lib/tweed")
DEFAULT_FILE = Path("/etc/tweed/agent.toml")
SOCKET_NAME = "agent.sock"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent was told. Durations in seconds unless the name says otherwise.

    `pod`: namespace and name of the pod that it runs in, when only Kubernetes can tell the node's name.
    """

    node_name: str
    store: str
    etcd_endpoints: tuple[str, ...] = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    etcd_prefix: str = "/coreos.com/network"
    etcd_keyfile: Path | None = None
    etcd_certfile: Path | None = None
    etcd_cafile: Path | None = None
    etcd_username: str = ""
    etcd_password: str = ""
    kube_api_url: str = ""
    kubeconfig_file: Path | None = None
    kube_annotation_prefix: str = "flannel.alpha.coreos.com"
    set_node_network_unavailable: bool = True
    pod: tuple[str, str] | None = None
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str = ""
    public_ip: bytes | None = None
    public_ipv6: bytes | None = None
    subnet_file: Path = Path("/run/flannel/subnet.env")
    net_config_path: Path = Path("/etc/kube-flannel/net-conf.json")
    subnet_lease_renew_margin: int = 60
    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    iptables_forward_rules: bool = True
    healthz_ip: bytes = bytes((127, 0, 0, 1))
    healthz_port: int = 9472
    run_dir: Path = DEFAULT_RUN_DIR
    state_dir: Path = DEFAULT_STATE_DIR
    resync: float = 30.0
    dry_run: bool = False

    @property
    def socket(self) -> Path:
        return self.run_dir / SOCKET_NAME

    @property
    def host_local(self) -> Path:
        """Where CNI's host-local keeps its files: beside the state directory, which is /var/lib/cni/networks on a node with the usual one."""
        return self.state_dir.parent / "cni" / "networks"

    @property
    def cni_socket(self) -> Path:
        """Where the CNI plugin calls."""
        return self.run_dir / "cni.sock"

    @property
    def store_file(self) -> Path | None:
        """The embedded store's file, None for a store that is a server's."""
        return Path(self.store.removeprefix("sqlite://")) if self.store.startswith("sqlite://") else None

    @property
    def store_flags(self) -> tuple[str, ...]:
        """The flags that another command on this node needs to open the same store; no secrets."""
        flags = [f"--store={self.store}"]
        if self.store == "etcd":
            flags += [f"--etcd-endpoints={','.join(self.etcd_endpoints)}", f"--etcd-prefix={self.etcd_prefix}"]
            files = (("keyfile", self.etcd_keyfile), ("certfile", self.etcd_certfile), ("cafile", self.etcd_cafile))
            flags += [f"--etcd-{name}={path.absolute()}" for name, path in files if path is not None]
            flags += [f"--etcd-username={self.etcd_username}"] if self.etcd_username else []
        elif self.store == "kube":
            flags += [f"--kubeconfig-file={self.kubeconfig_file.absolute()}"] if self.kubeconfig_file else []
            flags += [f"--kube-api-url={self.kube_api_url}"] if self.kube_api_url else []
            flags += [f"--kube-annotation-prefix={self.kube_annotation_prefix}", f"--net-config-path={self.net_config_path.absolute()}"]
        return tuple(flags)

    @property
    def renew_margin_s(self) -> float:
        """How long before its end the lease is renewed."""
        return self.subnet_lease_renew_margin * 60.0


class Option(msgspec.Struct, frozen=True):
    """One setting: its flag, how its text is read, and a line of help. `kind` ignored: accepted with one warning."""

    name: str
    kind: Literal["text", "list", "commas", "bool", "minutes", "seconds", "port", "ip", "ipv4", "ipv6", "path", "ignored"]
    help: str
    metavar: str = ""

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")


NO_MEANING = "flannel's; has no meaning in tweed"

IGNORED = (
    *("iptables-resync", "ip-blackhole-route"),
    *("v", "vmodule", "log_backtrace_at", "alsologtostderr", "logtostderr", "stderrthreshold", "log_dir"),
)

# What says where the leases are: of the agent, and of every command that looks into its store.
STORE_OPTIONS = (
    Option("store", "text", "who holds which subnet; default: store.db in the state directory, etcd where endpoints are given", "sqlite:///PATH|etcd|kube"),
    Option("etcd-endpoints", "commas", "client URLs of etcd's members; default http://127.0.0.1:4001,http://127.0.0.1:2379", "URL,…"),
    Option("etcd-prefix", "text", "the path that all keys are below; default /coreos.com/network", "PATH"),
    Option("etcd-cafile", "path", "who signed etcd's certificates (PEM); default: the system's authorities", "FILE"),
    Option("etcd-certfile", "path", "this node's certificate for etcd (PEM)", "FILE"),
    Option("etcd-keyfile", "path", "its key (PEM)", "FILE"),
    Option("etcd-username", "text", "etcd's user for this node", "NAME"),
    Option("etcd-password", "text", "its password; better in TWEED_ETCD_PASSWORD, since others can read a command line", "PASSWORD"),
    Option("kubeconfig-file", "path", "how to reach Kubernetes' API server; default: the pod's service account", "FILE"),
    Option("kube-api-url", "text", "its address, when it is another than the kubeconfig's", "URL"),
    Option("kube-annotation-prefix", "text", "what the annotations of Nodes begin with; default flannel.alpha.coreos.com", "PREFIX"),
)

OPTIONS: tuple[Option, ...] = (
    *STORE_OPTIONS,
    Option("kube-subnet-mgr", "bool", "the same as --store kube"),
    Option("set-node-network-unavailable", "bool", "set the Node's condition NetworkUnavailable to False; default true"),
    Option("net-config-path", "path", "network configuration (flannel's JSON): Kubernetes' only one, and what an empty store of another kind gets", "FILE"),
    Option("node-name", "text", "this node's name; default $NODE_NAME, else the hostname", "NAME"),
    Option("iface", "list", "underlay: an interface's name or address; the first that exists wins", "NAME|IP"),
    Option("iface-regex", "list", "underlay: expression matched against addresses, then names", "REGEX"),
    Option("iface-can-reach", "text", "underlay: the interface that the kernel would use to reach this address", "IP"),
    Option("public-ip", "ipv4", "IPv4 address that other nodes reach this one by", "IP"),
    Option("public-ipv6", "ipv6", "IPv6 address that other nodes reach this one by", "IP"),
    Option("ip-masq", "bool", "masquerade traffic that leaves the cluster network"),
    Option("ip-masq-fully-random-disable", "bool", "do not randomise the source ports of masqueraded traffic"),
    Option("iptables-forward-rules", "bool", "open iptables' FORWARD chain for the cluster network where it drops"),
    Option("subnet-file", "path", "where other programs read this node's subnet", "FILE"),
    Option("subnet-lease-renew-margin", "minutes", "renew the lease this many minutes before it ends (1 to 1439)", "MINUTES"),
    Option("healthz-ip", "ip", "address of /healthz, /readyz and /metrics", "IP"),
    Option("healthz-port", "port", "their TCP port; 0 turns it off (they stay on the unix socket)", "PORT"),
    Option("run-dir", "path", "the agent's socket and lock", "DIR"),
    Option("state-dir", "path", "what survives a reboot: store, attachments, notes for cleanup", "DIR"),
    Option("resync", "seconds", "look at everything again this often even when nothing happened; 0 turns it off", "SECONDS"),
    Option("dry-run", "bool", "print the commands that would be run, change nothing"),
    *(Option(name, "ignored", NO_MEANING) for name in IGNORED),
)
SELECTING = ("store", "etcd-endpoints", "kube-subnet-mgr")
BY_NAME = {option.name: option for option in OPTIONS}
# Go's glog flags that take no value, so that `-logtostderr --iface x` is not read as a pair.
VALUELESS = frozenset({"ip-blackhole-route", "alsologtostderr", "logtostderr"})


class Given(msgspec.Struct, frozen=True):
    """A value's text (for lists: every one) and where it came from, in a person's words."""

    values: tuple[str, ...]
    source: str


def load(arguments: Sequence[str], environment: Mapping[str, str], hostname: str, read: Callable[[Path], str] = Path.read_text) -> tuple[Settings, list[str]]:
    """Settings of `tweed agent ARGUMENTS…` and the warnings to print. Raises UsageError with one line.

    `read` opens the settings file: `--config FILE` (must exist) or /etc/tweed/agent.toml (may be absent).
    """
    flags = parse_flags(arguments)
    given: dict[str, Given] = {}
    explicit = flags.pop("config", None) or (Given((environment["TWEED_CONFIG"],), "TWEED_CONFIG") if environment.get("TWEED_CONFIG") else None)
    given.update(parse_file(explicit, read))
    for prefix in ("FLANNELD_", "TWEED_"):
        given.update(parse_environment(prefix, environment))
    given.update(flags)

    fields: dict[str, Any] = {}
    warnings = []
    for name, value in given.items():
        option = BY_NAME[name]
        if option.kind == "ignored":
            warnings.append(f"{value.source} is {NO_MEANING}")
        else:
            fields[option.field] = convert(option, value)
    if fields.pop("kube_subnet_mgr", False):
        if fields.get("store", "kube") != "kube":
            raise UsageError(f"{given['kube-subnet-mgr'].source} and {given['store'].source}={fields['store']!r}: give one of them")
        fields["store"] = "kube"
    namespace, pod = environment.get("POD_NAMESPACE", ""), environment.get("POD_NAME", "")
    if fields.get("store") == "kube" and namespace and pod and not fields.get("node_name") and not environment.get("NODE_NAME"):
        fields["pod"] = namespace, pod
    fields["node_name"] = node_name(fields.get("node_name"), environment, hostname)
    if not fields.get("store") and "etcd_endpoints" in fields:
        fields["store"] = "etcd"
    if not fields.get("store"):
        fields["store"] = f"sqlite://{(fields.get('state_dir') or DEFAULT_STATE_DIR).absolute()}/store.db"
    return Settings(**fields), warnings


def selects_store(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether these flags or variables say by themselves which store is meant."""
    given = {**parse_environment("FLANNELD_", environment), **parse_environment("TWEED_", environment), **parse_flags(arguments)}
    return not given.keys().isdisjoint(SELECTING)


def node_name(flag: str | None, environment: Mapping[str, str], hostname: str) -> str:
    """`--node-name`, else NODE_NAME, else the hostname."""
    name = flag or environment.get("NODE_NAME") or hostname
    if not 0 < len(name) <= 253 or not name.isprintable() or any(c.isspace() or c == "/" for c in name):
        raise UsageError(f"--node-name {name!r}: use 1 to 253 printable characters without blanks or slashes")
    return name


def parse_flags(arguments: Sequence[str]) -> dict[str, Given]:
    """Go's `flag` package: one or two dashes, `=VALUE` or the next word, booleans alone or with `=`; `--` or a bare word ends it."""
    given: dict[str, Given] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            raise UsageError(f"tweed agent: unexpected word {word!r}; flags start with a dash, see tweed agent --help")
        name, equals, text = word.lstrip("-").partition("=")
        option = BY_NAME.get(name)
        if name != "config" and option is None:
            raise UsageError(f"tweed agent: unknown flag {word.split('=')[0]}; see tweed agent --help")
        if not equals:
            if option is not None and (option.kind == "bool" or name in VALUELESS):
                text = "true"
            elif words:
                text = words.pop(0)
            else:
                raise UsageError(f"--{name}: needs a value")
        earlier = given[name].values if name in given and option is not None and option.kind == "list" else ()
        given[name] = Given((*earlier, text), f"--{name}")
    return given


def parse_environment(prefix: str, environment: Mapping[str, str]) -> dict[str, Given]:
    """`FLANNELD_IFACE`, `TWEED_RUN_DIR`: the flag's name, upper case, dashes as underscores. One value each, as flannel."""
    given = {}
    for option in OPTIONS:
        key = prefix + option.name.upper().replace("-", "_")
        if environment.get(key):
            given[option.name] = Given((environment[key],), key)
    return given


def parse_file(explicit: Given | None, read: Callable[[Path], str]) -> dict[str, Given]:
    """TOML whose keys are flag names: `iface = ["ens33"]`, `ip-masq = true`."""
    path = Path(explicit.values[-1]) if explicit else DEFAULT_FILE
    try:
        table = tomllib.loads(read(path))
    except FileNotFoundError:
        if explicit is None:
            return {}
        raise UsageError(f"{explicit.source} {path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    given = {}
    for key, value in table.items():
        if key not in BY_NAME:
            raise UsageError(f"{path}: unknown key {key!r}; keys are the flags of tweed agent --help")
        values = value if isinstance(value, list) else [value]
        if isinstance(value, dict) or not values or (len(values) > 1 and BY_NAME[key].kind not in ("list", "commas")):
            raise UsageError(f"{path}: {key}: expected one value")
        given[key] = Given(tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in values), f"{path}: {key}")
    return given


TRUTH = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


def convert(option: Option, given: Given) -> Any:
    """The field's value. Raises UsageError naming source, value and what would be right."""
    text = given.values[-1]

    def wrong(expected: str) -> UsageError:
        return UsageError(f"{given.source}={text!r}: {expected}")

    match option.kind:
        case "list":
            return given.values
        case "commas":
            return tuple(part.strip() for value in given.values for part in value.split(",") if part.strip())
        case "bool":
            if text.lower() not in TRUTH:
                raise wrong("use true or false")
            return TRUTH[text.lower()]
        case "minutes":
            if not text.isdecimal() or not 1 <= int(text) <= 1439:
                raise wrong("use whole minutes from 1 to 1439")
            return int(text)
        case "seconds":
            number = text.removesuffix("s")
            if not number.replace(".", "", 1).isdecimal() or float(number) > 86400:
                raise wrong("use seconds from 0 to 86400")
            return float(number)
        case "port":
            if not text.isdecimal() or int(text) > 65535:
                raise wrong("use a port from 0 to 65535")
            return int(text)
        case "ip" | "ipv4" | "ipv6":
            try:
                address = parse_address(text)
            except ValueError:
                raise wrong("use an IP address") from None
            if option.kind != "ip" and option.kind != f"ipv{family(address)}":
                raise wrong(f"use an IP{option.kind[2:]} address")
            return address
        case "path":
            if not text:
                raise wrong("use a path")
            return Path(text)
        case _:
            return text


def usage() -> str:
    """The text of `tweed agent --help`."""
    lines = [
        "Usage: tweed agent [FLAGS]",
        "",
        "Keep this node in the overlay: lease a subnet, create the VXLAN device, program every peer, put back what is lost.",
        "",
        "Flags (one or two dashes; also as TWEED_… or FLANNELD_… variables, or keys of --config FILE, default /etc/tweed/agent.toml):",
    ]
    shown = [o for o in OPTIONS if o.kind != "ignored"]
    lines += [f"  --{o.name + (' ' + o.metavar if o.metavar else ''):<38} {o.help}" for o in shown]
    return "\n".join([*lines, "", "Other flags of flanneld are accepted with a warning."])
