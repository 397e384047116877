"""script/packages, script/setup, script/machine-state: in a mount namespace where /etc, /usr and /var are copies that vanish, with an apt-get of ours."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from tests import machine

ROOT = Path(__file__).parents[2]

COPY = r"""
mount -t tmpfs tmpfs /mnt
for d in etc usr var; do
    mkdir -p /mnt/$d/upper /mnt/$d/work
    mount -t overlay overlay -o lowerdir=/$d,upperdir=/mnt/$d/upper,workdir=/mnt/$d/work /$d
done
mkdir /mnt/tmp && export TMPDIR=/mnt/tmp
rm -f /usr/sbin/policy-rc.d /usr/bin/tshark
wants=/etc/systemd/system/multi-user.target.wants
mkdir -p $wants /etc/rc2.d /lib/systemd/system
ln -s /lib/systemd/system/elder.service $wants/elder.service
ln -s ../init.d/elder /etc/rc2.d/S01elder
cat >/usr/bin/apt-get <<'END'
#!/bin/bash
echo "$*" | sed 's/ -o [^ ]*Timeout=300 .*confold//' >>/mnt/calls
case "$* " in
*--download-only*) eval "$FETCH" ;;
*" install "*)
    /usr/sbin/policy-rc.d newcomer start
    echo "policy says $?" >>/mnt/calls
    ln -s /lib/systemd/system/newcomer.service /etc/systemd/system/multi-user.target.wants/newcomer.service
    mv /etc/rc2.d/S01elder /etc/rc2.d/S02elder
    ln -s ../init.d/newcomer /etc/rc2.d/S01newcomer
    eval "$INSTALL"
    cp /bin/true /usr/bin/tshark
    ;;
esac
END
chmod +x /usr/bin/apt-get
"""
LEFT = r"""
echo "-- left"
cd / && find etc/systemd/system etc/rc2.d ! -type d \( -name '*elder*' -o -name '*newcomer*' \) | sort
ls usr/sbin/policy-rc.d* usr/bin/tshark mnt/tmp/* 2>/dev/null || :
"""
INSTALLED = ["etc/rc2.d/S02elder", "etc/systemd/system/multi-user.target.wants/elder.service", "usr/bin/tshark"]
UNTOUCHED = ["etc/rc2.d/S01elder", "etc/systemd/system/multi-user.target.wants/elder.service"]


def in_copy(script: str, **environment: str) -> tuple[list[str], list[str]]:
    """What the script printed (both streams) and what is left of the copy afterwards."""
    command = ["unshare", "--mount", "bash", "-c", f"set -e\n{COPY}\nset +e\n{script}\n{LEFT}"]
    inherited = {key: value for key, value in os.environ.items() if key != machine.VARIABLE}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,
    )
    printed, _, left = done.stdout.partition("-- left\n")
    assert done.returncode == 0, done.stdout
    return printed.splitlines(), left.splitlines()


FETCHES = "-q -y install --no-install-recommends --no-remove tshark --download-only"
INSTALLS = "-q -y install --no-install-recommends --no-remove tshark"


def test_a_package_starts_and_enables_nothing() -> None:
    printed, left = in_copy("script/packages tshark 2>&1; echo exit $?; cat /mnt/calls")
    assert left == INSTALLED
    assert printed == [
        "setup: fetching Debian packages: tshark",
        "setup: installing them (no service is started)",
        "setup: left disabled: newcomer newcomer.service",
        "exit 0",
        FETCHES,
        INSTALLS,
        "policy says 101",
    ]


def test_somebodys_policy_stays_and_still_nothing_is_started() -> None:
    theirs = "printf '#!/bin/sh\\nexit 0\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; stat -c '%i %Y' /usr/sbin/policy-rc.d;"
    printed, left = in_copy(
        theirs + "script/packages tshark 2>/dev/null; echo exit $?; tail -n 1 /mnt/calls; cat /usr/sbin/policy-rc.d; stat -c '%i %Y' /usr/sbin/policy-rc.d"
    )
    assert printed[1:5] == ["exit 0", "policy says 101", "#!/bin/sh", "exit 0"]
    assert printed[0] == printed[5]
    assert left == [*INSTALLED[:2], "usr/bin/tshark", "usr/sbin/policy-rc.d"]


@pytest.mark.parametrize(("signal", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_a_signal_while_dpkg_works_waits_for_it_and_leaves_nothing(signal: str, code: int) -> None:
    """The signal goes to the whole process group, as a terminal's Ctrl-C does."""
    ctrl_c = f"read -r _ _ _ _ group _ </proc/$PPID/stat; kill -{signal} -- -$group"
    printed, left = in_copy(f"trap : {signal}; script/packages tshark 2>/dev/null; echo exit $?", INSTALL=ctrl_c)
    assert (printed, left) == ([f"exit {code}"], INSTALLED)


def test_a_signal_while_fetching_installs_nothing() -> None:
    printed, left = in_copy("script/packages tshark 2>/dev/null; echo exit $?; cat /mnt/calls", FETCH="kill -INT $PPID")
    assert (printed, left) == (["exit 130", FETCHES], UNTOUCHED)


def test_after_a_kill_the_next_call_waits_for_dpkg_and_removes_the_policy() -> None:
    script = "script/packages tshark 2>/dev/null; echo exit $?; ls /usr/sbin/policy-rc.d; script/packages 2>/mnt/said; cat /mnt/said; ls /usr/bin/tshark"
    printed, left = in_copy(script, INSTALL="kill -KILL $PPID; for ((i = 0; i < 300; i++)); do grep -qs waiting /mnt/said && break; sleep 0.1; done")
    assert [line for line in printed if "Killed" not in line] == [
        "exit 137",
        "/usr/sbin/policy-rc.d",
        "setup: waiting for another installation",
        "/usr/bin/tshark",
    ]
    assert not any("policy-rc.d" in path for path in left)


def test_stale_lists_are_refreshed_once() -> None:
    printed, left = in_copy("script/packages tshark 2>&1; cat /mnt/calls", FETCH="[[ -e /mnt/again ]] || { touch /mnt/again; exit 100; }")
    assert "setup: refreshing apt's lists" in printed
    assert printed[-5:] == [FETCHES, "-q -y update", FETCHES, INSTALLS, "policy says 101"]
    assert left == INSTALLED


def test_a_package_that_cannot_be_had_is_one_line() -> None:
    printed, left = in_copy("script/packages tshark 2>&1; echo exit $?", FETCH="echo 'E: Unable to locate package tshark' >&2; exit 100")
    assert printed[-2:] == ["setup: cannot fetch tshark: E: Unable to locate package tshark", "exit 1"]
    assert left == UNTOUCHED


def test_setup_asks_for_what_is_missing() -> None:
    printed, left = in_copy("rm /usr/bin/apt-get; script/setup test 2>&1; echo exit $?")
    assert printed == ["setup: missing: tshark; there is no apt-get here, so install them yourself and start again", "exit 1"]
    assert left == UNTOUCHED


@pytest.mark.parametrize("purpose", ["demo", "test"])
def test_not_root_is_one_line(purpose: str) -> None:
    # A user namespace without a mapping: the same files, another effective uid.
    done = subprocess.run(["unshare", "--user", ROOT / "script" / purpose], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"setup: needs root, for network namespaces and VXLAN devices: sudo script/{purpose}\n"


def test_a_kernel_without_vxlan_is_one_line() -> None:
    fake = "cp /bin/true /usr/bin/tshark; printf '#!/bin/sh\\necho Error: Unknown device type. >&2; exit 2' >/mnt/ip; chmod +x /mnt/ip; PATH=/mnt:$PATH;"
    printed, _ = in_copy(fake + "script/setup test 2>&1; echo exit $?")
    assert printed[0].startswith("setup: this kernel makes no namespace with veth, bridge and vxlan devices (Error: Unknown device type.)")
    assert printed[1:] == ["exit 1"]


# The least that pip installs: no backend is at hand without a network.
BACKEND = """
import zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{directory}/small-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n")
        wheel.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-1.dist-info/RECORD", "")
    return "small-1-py3-none-any.whl"
"""


def test_the_environment_is_made_once_after_a_failure_and_after_a_change(tmp_path: Path) -> None:
    """In a small tree of its own, without a network: the lock names something that cannot be had, then nothing."""
    shutil.copytree(ROOT / "script", tmp_path / "script")
    lock, project = tmp_path / "requirements.lock", tmp_path / "pyproject.toml"
    project.write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    (tmp_path / "backend.py").write_text(BACKEND)

    def setup() -> tuple[int, list[str]]:
        done = subprocess.run([tmp_path / "script/setup", "demo"], env={**os.environ, "PIP_NO_INDEX": "1"}, capture_output=True, text=True, check=False)
        return done.returncode, [line.split(" with ")[0] for line in done.stderr.splitlines()]

    made, locked, itself = "setup: making .venv", "setup: installing the locked Python packages", "setup: installing tweed itself"
    lock.write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    assert setup() == (1, [made, locked, "setup: cannot install requirements.lock: ERROR: No matching distribution found for nowhere==1"])
    lock.write_text("# nothing\n")
    assert setup() == (0, [made, locked, itself])
    assert setup() == (0, [])
    project.write_text(project.read_text() + "# changed\n")
    assert setup() == (0, [itself])


LISTENER = 'import socket, time; s = socket.create_server(("127.0.0.1", 4789)); print("ready", flush=True); time.sleep(60)'
CHANGES = {
    "links": ("ip link add tweedx type bridge", "ip link del tweedx"),
    "addresses": ("ip address add 192.0.2.1/32 dev lo", "ip address del 192.0.2.1/32 dev lo"),
    "routes": ("ip route add blackhole 198.51.100.0/24", "ip route del blackhole 198.51.100.0/24"),
    "rules": ("ip -6 rule add from 2001:db8::1 lookup 99", "ip -6 rule del from 2001:db8::1 lookup 99"),
    "nft": ("nft add table ip tweedx", "nft delete table ip tweedx"),
    "iptables": ("iptables -w -A FORWARD -j ACCEPT", "iptables -w -D FORWARD -j ACCEPT"),
    "sysctls": ("echo 1 >/proc/sys/net/ipv4/conf/lo/proxy_arp", "echo 0 >/proc/sys/net/ipv4/conf/lo/proxy_arp"),
    "enabled": ("ln -s /x.service /etc/systemd/system/x.service", "rm /etc/systemd/system/x.service"),
    "netns": ("mkdir -p /run/netns; touch /run/netns/tweedx", "rm /run/netns/tweedx"),
    "files": ("mkdir -p /run/tweed; touch /run/tweed/x", "rm -r /run/tweed"),
    "listeners": ("", ""),
    "processes": ("", ""),
}


def test_machine_state_sees_every_kind_of_change_and_only_them() -> None:
    """In a network namespace, with a listener and a process named tweed that last as long as the second state is taken."""
    do, undo = ("\n".join(pair[i] for pair in CHANGES.values()) for i in (0, 1))
    script = f"""
        mount -t tmpfs tmpfs /run
        cp /bin/sleep /mnt/tweed
        ip link set lo up
        iptables -w -A FORWARD -j DROP
        script/machine-state >/mnt/before
        {do}
        TWEED_MACHINE_BEFORE=x python3 -c '{LISTENER}' >/mnt/ready & listener=$!
        /mnt/tweed 60 & sleeper=$!
        for ((i = 0; i < 200 && ! $(wc -c </mnt/ready); i++)); do sleep 0.05; done
        script/machine-state >/mnt/between
        kill $listener $sleeper
        wait
        {undo}
        script/machine-state >/mnt/after
        cat /mnt/before; echo --; cat /mnt/between; echo --; cat /mnt/after
    """
    printed, _ = in_copy(f"unshare --net --pid --fork --kill-child --mount-proc bash -c {shlex.quote(script)}")
    before, between, after = (machine.parse(text) for text in "\n".join(printed).split("\n--\n"))
    assert {line.partition(":")[0] for line in machine.differences(before, between)} == set(CHANGES) == set(machine.SECTIONS)
    assert sum(line.startswith("processes: + ") for line in machine.differences(before, between)) == 2
    assert [line for line in machine.differences(before, after) if " /tmp/" not in line] == []  # which has other users
