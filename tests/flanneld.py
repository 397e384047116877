"""A stand-in for flanneld with etcd and the vxlan backend, from the facts in the specification of its behaviour alone: no line of tweed, and none of flannel.

    python3 flanneld.py --etcd-endpoints URL --iface ens33 --subnet-file FILE [--ip-masq] [--iptables-forward-rules=false]

It has flanneld's habits, good and bad: it takes whatever lease has its public address, writes without comparing, keeps a device that it finds,
never repairs a row, cleans up nothing, and leaves all in place when it ends. What it cannot read it skips with a line.
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TTL_S = 86400
RESYNC_S = 5
KEY = re.compile(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(*words: str, stdin: str | None = None, quiet: bool = False) -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        if not quiet:
            say(f"E {' '.join(words)}: {done.stderr.strip()}")
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def recover_mac(text: str) -> str | None:
    """A node's MAC from the text of its backend-data, by flanneld's own naive splitting: one field with a string, no blanks, or nothing."""
    if any(c.isspace() for c in text) or text.count('":"') != 1:
        return None
    value = text.split('":"')[1].split('"')[0]
    return value if re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", value) else None


class Etcd:
    def __init__(self, endpoints: str, prefix: str) -> None:
        self.words = ["etcdctl", f"--endpoints={endpoints}", "--dial-timeout=2s", "--command-timeout=5s"]
        self.prefix = prefix
        os.environ["ETCDCTL_API"] = "3"

    def ctl(self, *words: str, stdin: str | None = None) -> str:
        return run(*self.words, *words, stdin=stdin)

    def config(self) -> dict:
        while True:
            text = self.ctl("get", f"{self.prefix}/config", "--print-value-only").strip()
            if text:
                return json.loads(text)
            say("E flannel config not found in etcd store")
            time.sleep(1)

    def leases(self) -> tuple[int, dict[str, bytes]]:
        answer = json.loads(self.ctl("get", "--prefix", f"{self.prefix}/subnets", "-w", "json"))
        return answer["header"]["revision"], {b64(kv["key"]).decode(): b64(kv["value"]) for kv in answer.get("kvs", ())}

    def grant(self) -> str:
        return self.ctl("lease", "grant", str(TTL_S)).split()[1]

    def put(self, key: str, value: str) -> None:
        """Without comparing, on a new lease: so it renews, and so it takes over what has its address."""
        self.ctl("put", f"--lease={self.grant()}", "--", key, value)

    def create(self, key: str, value: str) -> bool:
        quoted = json.dumps(value)  # etcdctl 3.4 cuts what stands in single quotes
        text = self.ctl("txn", stdin=f'version("{key}") = "0"\n\nput --lease={self.grant()} {key} {quoted}\n\nget {key}\n\n')
        return text.startswith("SUCCESS")

    def watch(self, revision: int):
        words = ["setpriv", "--pdeathsig", "KILL", *self.words, "watch", "--prefix", f"{self.prefix}/subnets", f"--rev={revision}", "-w", "json"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            for event in json.loads(line).get("Events") or ():
                kv = event["kv"]
                yield event.get("type") == 1, b64(kv["key"]).decode(), b64(kv.get("value", ""))
        raise SystemExit("E the watch ended")


def b64(text: str) -> bytes:
    return base64.b64decode(text)


class Family:
    """IPv4 or IPv6 of this node: its subnet and its VXLAN device."""

    def __init__(self, number: int, config: dict, options: argparse.Namespace) -> None:
        self.number = number
        self.ip = ["ip", f"-{number}"]
        self.network = ipaddress.ip_network(config["Network" if number == 4 else "IPv6Network"])
        usual = max(24 if number == 4 else 64, self.network.prefixlen + 2)
        self.length = config.get("SubnetLen" if number == 4 else "IPv6SubnetLen") or usual
        self.vni = config.get("Backend", {}).get("VNI", 1)
        self.port = config.get("Backend", {}).get("Port", 0)
        self.direct = config.get("Backend", {}).get("DirectRouting", False)
        self.device = f"flannel{'' if number == 4 else '-v6'}.{self.vni}"
        shown = json.loads(run("ip", "-j", "addr", "show", "dev", options.iface))[0]
        family = "inet" if number == 4 else "inet6"
        self.local = next(a["local"] for a in shown["addr_info"] if a["family"] == family and a["scope"] == "global")
        self.iface, self.mtu = options.iface, shown["mtu"] - 50
        self.subnet = self.network

    def make_device(self) -> str:
        """Its MAC. A device that is the same in flanneld's eyes is kept, with whatever MAC it has; another one is replaced."""
        want = {"id": self.vni, "link": self.iface, "local" if self.number == 4 else "local6": self.local, "port": self.port or 8472}
        try:
            there = json.loads(run("ip", "-d", "-j", "link", "show", self.device, quiet=True))[0]
            data = there["linkinfo"].get("info_data", {})
            if there["linkinfo"].get("info_kind") == "vxlan" and {k: data.get(k) for k in want} == want and not data.get("gbp") and not data.get("group"):
                say(f"I keeping {self.device} with {there['address']}")
                return self.up(there["address"])
            say(f"W {self.device} is another one, removing it: {data}")
            run("ip", "link", "del", self.device)
        except RuntimeError:
            pass
        mac = ":".join(f"{b:02x}" for b in [random.randrange(256) & 0xFC | 2, *(random.randrange(256) for _ in range(5))])
        port = ["dstport", str(self.port)] if self.port else ["dstport", "8472"]
        words = ["type", "vxlan", "id", str(self.vni), "local", self.local, "dev", self.iface, *port, "nolearning"]
        run("ip", "link", "add", self.device, "address", mac, "mtu", str(min(self.mtu, self.mtu if self.number == 4 else self.mtu - 20)), *words)
        run("sysctl", "-qw", f"net/ipv6/conf/{self.device}/accept_ra=0", quiet=True)
        return self.up(mac)

    def up(self, mac: str) -> str:
        base = self.subnet.network_address
        nodad = ["nodad"] if self.number == 6 else []
        shown = json.loads(run("ip", "-j", "addr", "show", "dev", self.device))[0]["addr_info"]
        for address in (a for a in shown if a["scope"] == "global" and ipaddress.ip_address(a["local"]).version == self.number):
            if address["local"] != str(base) and (self.number == 6 or ipaddress.ip_address(address["local"]) in self.network):
                run(*self.ip, "addr", "del", f"{address['local']}/{address['prefixlen']}", "dev", self.device)
        run(*self.ip, "addr", "replace", f"{base}/{self.subnet.max_prefixlen}", "dev", self.device, *nodad)
        run("ip", "link", "set", self.device, "up")
        return mac

    def add(self, subnet, host: str, mac: str) -> None:
        base = str(subnet.network_address)
        if self.direct and " via " not in run(*self.ip, "route", "get", host).split("\n")[0]:
            run(*self.ip, "route", "replace", str(subnet), "via", host)
            return
        run(*self.ip, "neigh", "replace", base, "lladdr", mac, "dev", self.device, "nud", "permanent")
        run("bridge", "fdb", "replace", mac, "dev", self.device, "dst", host, "self", "permanent")
        run(*self.ip, "route", "replace", str(subnet), "via", base, "dev", self.device, "onlink")

    def remove(self, subnet, host: str, mac: str) -> None:
        base = str(subnet.network_address)
        for words in (
            [*self.ip, "neigh", "del", base, "dev", self.device],
            ["bridge", "fdb", "del", mac, "dev", self.device, "dst", host, "self"],
            [*self.ip, "route", "del", str(subnet), "via", base, "dev", self.device],
        ):
            try:
                run(*words)
            except RuntimeError:
                continue  # logged, and the rest is tried

    # ---- firewall

    def iptables(self, options: argparse.Namespace) -> None:
        c, p, word = self.network, self.subnet, "iptables" if self.number == 4 else "ip6tables"
        multicast = "224.0.0.0/4" if self.number == 4 else "ff00::/8"
        masq, forward = '-m comment --comment "flanneld masq"', '-m comment --comment "flanneld forward"'
        if options.ip_masq:
            lines = [
                ":FLANNEL-POSTRTG - [0:0]",
                *([] if self.jumps(word, "nat", "POSTROUTING", "FLANNEL-POSTRTG") else [f"-A POSTROUTING {masq} -j FLANNEL-POSTRTG"]),
                f"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN",
                f"-A FLANNEL-POSTRTG -s {p} -d {c} {masq} -j RETURN",
                f"-A FLANNEL-POSTRTG -s {c} -d {p} {masq} -j RETURN",
                f"-A FLANNEL-POSTRTG ! -s {c} -d {p} {masq} -j RETURN",
                f"-A FLANNEL-POSTRTG -s {c} ! -d {multicast} {masq} -j MASQUERADE --random-fully",
                f"-A FLANNEL-POSTRTG ! -s {c} -d {c} {masq} -j MASQUERADE --random-fully",
            ]
            run(f"{word}-restore", "--noflush", "--wait", stdin="\n".join(["*nat", *lines, "COMMIT", ""]))
        if options.iptables_forward_rules:
            lines = [":FLANNEL-FWD - [0:0]", *([] if self.jumps(word, "filter", "FORWARD", "FLANNEL-FWD") else [f"-A FORWARD {forward} -j FLANNEL-FWD"])]
            lines += [f"-A FLANNEL-FWD -s {c} {forward} -j ACCEPT", f"-A FLANNEL-FWD -d {c} {forward} -j ACCEPT"]
            run(f"{word}-restore", "--noflush", "--wait", stdin="\n".join(["*filter", *lines, "COMMIT", ""]))

    def jumps(self, word: str, table: str, hook: str, chain: str) -> bool:
        comment = "flanneld masq" if table == "nat" else "flanneld forward"
        try:
            run(word, "-w", "-t", table, "-C", hook, "-m", "comment", "--comment", comment, "-j", chain, quiet=True)
        except RuntimeError:
            return False
        return True

    def resync(self, options: argparse.Namespace) -> None:
        word = "iptables" if self.number == 4 else "ip6tables"
        masq = not options.ip_masq or self.jumps(word, "nat", "POSTROUTING", "FLANNEL-POSTRTG")
        if not masq or (options.iptables_forward_rules and not self.jumps(word, "filter", "FORWARD", "FLANNEL-FWD")):
            self.iptables(options)


class Flanneld:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.etcd = Etcd(options.etcd_endpoints, options.etcd_prefix)
        config = self.etcd.config()
        self.backend = config.get("Backend", {}).get("Type", "udp").lower()
        if self.backend != "vxlan":
            raise SystemExit(f"E this stand-in runs vxlan only, the configuration says {self.backend}")
        self.families = [Family(n, config, options) for n in (4, 6) if config.get("EnableIPv4" if n == 4 else "EnableIPv6", n == 4)]
        self.key = ""
        self.known: dict[str, dict] = {}

    def acquire(self) -> None:
        _, leases = self.etcd.leases()
        four = self.families[0]
        previous = dict(line.split("=", 1) for line in self.read_subnet_file().splitlines() if "=" in line)
        for key, value in leases.items():
            if (read := self.parse(key, value)) is not None and read["PublicIP"] == four.local and len(read["subnets"]) == len(self.families):
                self.take(read["subnets"])
                return
        taken = [s for key, value in leases.items() if (read := self.parse(key, value)) is not None for s in read["subnets"]]
        names = {4: "FLANNEL_SUBNET", 6: "FLANNEL_IPV6_SUBNET"}
        kept = [ipaddress.ip_network(previous[names[f.number]], strict=False) for f in self.families if names[f.number] in previous]
        if len(kept) == len(self.families) and not any(a.version == b.version and a.overlaps(b) for a in kept for b in taken):
            self.take(kept)
            return
        chosen = []
        for family in self.families:
            free = []
            for number, candidate in enumerate(family.network.subnets(new_prefix=family.length)):
                if number and not any(candidate.version == t.version and candidate.overlaps(t) for t in taken):
                    free.append(candidate)
                if len(free) == 100:
                    break
            chosen.append(random.choice(free))
        self.take(chosen)

    def take(self, subnets: list) -> None:
        for family, subnet in zip(self.families, subnets, strict=True):
            family.subnet = subnet
        self.key = f"{self.etcd.prefix}/subnets/" + "&".join(f"{s.network_address}-{s.prefixlen}" for s in subnets)

    def publish(self) -> None:
        """flanneld acquires first and has its MAC by then; here the subnet comes first, since the device's address is made of it."""
        macs = [family.make_device() for family in self.families]
        value: dict = {"PublicIP": self.families[0].local, "PublicIPv6": self.families[1].local if len(self.families) > 1 else None, "BackendType": "vxlan"}
        for name, family, mac in zip(("BackendData", "BackendV6Data"), self.families, macs, strict=False):
            value[name] = {"VNI": family.vni, "VtepMAC": mac}
        text = json.dumps(value, separators=(",", ":"))
        if self.key in self.etcd.leases()[1]:
            self.etcd.put(self.key, text)
        elif not self.etcd.create(self.key, text):
            raise SystemExit("E subnet already exists")

    def parse(self, key: str, value: bytes) -> dict | None:
        """A lease as flanneld reads it. What is none is skipped with a line."""
        match = KEY.search(key)
        try:
            if match is None:
                raise ValueError("no subnet in the key")
            read = json.loads(value)
            subnets = [ipaddress.ip_network(f"{match[1]}/{match[2]}")]
            if match[3]:
                subnets.append(ipaddress.ip_network(f"{match[3]}/{match[4]}"))
            return {**read, "subnets": subnets}
        except (ValueError, KeyError) as error:
            say(f"W skipping {key}: {error}")
            return None

    def read_subnet_file(self) -> str:
        try:
            return Path(self.options.subnet_file).read_text()
        except OSError:
            return ""

    def write_subnet_file(self) -> None:
        lines = []
        for family in self.families:
            word = "" if family.number == 4 else "IPV6_"
            lines += [f"FLANNEL_{word}NETWORK={family.network}", f"FLANNEL_{word}SUBNET={family.subnet.network_address + 1}/{family.length}"]
        lines += [f"FLANNEL_MTU={self.families[0].mtu}", f"FLANNEL_IPMASQ={'true' if self.options.ip_masq else 'false'}", ""]
        path = Path(self.options.subnet_file)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("\n".join(lines))
        temporary.rename(path)

    def handle(self, deleted: bool, key: str, value: bytes) -> None:
        if key == self.key:
            if deleted:
                say("I Lease has been revoked. Shutting down daemon.")
                raise SystemExit(0)
            return
        read = self.known.pop(key, None) if deleted else self.parse(key, value)
        if read is None:
            return
        if read.get("BackendType", "") != "vxlan":
            say(f"W ignoring non-vxlan subnet {key}: type={read.get('BackendType', '')!r}")
            return
        if not deleted:
            self.known[key] = read
        for family, subnet, host, data in zip(self.families, read["subnets"], ("PublicIP", "PublicIPv6"), ("BackendData", "BackendV6Data"), strict=False):
            try:
                (family.remove if deleted else family.add)(subnet, read[host], read[data]["VtepMAC"])
            except (RuntimeError, KeyError, TypeError):
                return  # a failure of IPv4 takes IPv6 with it

    def run(self) -> None:
        self.acquire()
        self.publish()
        for family in self.families:
            family.iptables(self.options)
        threading.Thread(target=self.keep_iptables, daemon=True).start()
        self.write_subnet_file()
        revision, leases = self.etcd.leases()
        for key, value in leases.items():
            self.handle(False, key, value)
        say(f"I running: {self.key}")
        for event in self.etcd.watch(revision + 1):
            self.handle(*event)

    def keep_iptables(self) -> None:
        while True:
            time.sleep(RESYNC_S)
            for family in self.families:
                family.resync(self.options)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--etcd-endpoints", default="http://127.0.0.1:2379")
    parser.add_argument("--etcd-prefix", default="/coreos.com/network")
    parser.add_argument("--iface", required=True)
    parser.add_argument("--subnet-file", default="/run/flannel/subnet.env")
    parser.add_argument("--ip-masq", action="store_true")
    parser.add_argument("--iptables-forward-rules", type=lambda text: text != "false", default=True)
    Path("/proc/self/comm").write_text("flanneld")  # what others know it by
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # all stays as it is
    Flanneld(parser.parse_args()).run()


if __name__ == "__main__":
    main()
