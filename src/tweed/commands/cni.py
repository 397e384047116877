"""`tweed cni`: put the plugin where container runtimes look for it, and take it away again."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from tweed import cni as package
from tweed.commands.common import agent_socket
from tweed.errors import TweedError, UsageError

SOURCE = Path(package.__file__).parent
BIN_DIR = Path("/opt/cni/bin")
AGENT_FILE = "tweed.agent"
MODULES = "tweed.d"  # what the plugin in Python imports, and Python keeps compiled
PYTHON = Path("/usr/bin/python3")
BUILT = SOURCE / "relay"  # by script/image, since images have no compiler
CONFLIST = "10-tweed.conflist"
ELSEWHERE = Path("/usr/lib/cni")  # where Debian puts the other plugins, and its podman looks for them
# 1.0.0, although we speak 1.1.0: Debian's plugins, and so whole chains with them, end there.
FIRST = {"type": "tweed", "capabilities": {"ips": True, "mac": True}}
CHAINED = ({"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "bandwidth", "capabilities": {"bandwidth": True}})
ASIDE = ".before-tweed"

bin_option = click.option("--bin-dir", type=click.Path(path_type=Path), default=BIN_DIR, show_default=True, help="Where runtimes look for plugins.")
conf_option = click.option(
    "--conf-dir", type=click.Path(path_type=Path), default=Path("/etc/cni/net.d"), show_default=True, help="Where they look for networks."
)


@click.group()
def cni() -> None:
    """The CNI plugin, by which container runtimes attach containers."""


@cni.command()
@bin_option
@conf_option
@click.option(
    "--relay", type=click.Choice(["auto", "c", "python"]), default="auto", show_default=True, help="c needs a compiler; auto takes it where there is one."
)
@click.option("--flannel", is_flag=True, help="In the place of flannel's plugin, for the network that flannel's file describes; no file of ours.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="The agent's; default: that of this network namespace's agent.")
def install(bin_dir: Path, conf_dir: Path, relay: str, flannel: bool, run_dir: Path | None) -> None:
    """Write the plugin and, unless it stands in for flannel's, a network that uses it."""
    where = str((run_dir or agent_socket(None).parent).absolute())
    if not where.isprintable() or set(where) & set('"\\%'):
        raise UsageError(f"--run-dir {where!r}: use a path of plain letters")
    built = None if relay == "python" else build(required=relay == "c")
    made, kind = built or ((SOURCE / "plugin.py").read_bytes(), f"the plugin, for {PYTHON}")
    plugin = bin_dir / ("flannel" if flannel else "tweed")
    if os.path.lexists(plugin) and not is_ours(plugin):
        keep(plugin)
        click.echo(f"kept {plugin}, which is not tweed's, as {plugin.name}{ASIDE}; tweed cni uninstall brings it back")
    if built is None:
        write_module(bin_dir / MODULES)
    for path, content, mode, what in ((bin_dir / AGENT_FILE, f"{where}\n".encode(), 0o644, f"the agent's directory, {where}"), (plugin, made, 0o755, kind)):
        replace(path, content, mode)
        click.echo(f"wrote {path}: {what}")
    if flannel:
        return
    path = conf_dir / CONFLIST
    chained = [plugin for plugin in CHAINED if any((directory / str(plugin["type"])).exists() for directory in (bin_dir, ELSEWHERE))]
    if path.exists() and not is_as_written(path):
        click.echo(f"left alone {path}: it is not as tweed writes it; remove it and run this again to have it written anew")
    else:
        replace(path, conflist(chained), 0o644)
        click.echo(f"wrote {path}: network tweed, {' then '.join(str(p['type']) for p in (FIRST, *chained))}")
        if left := [str(p["type"]) for p in CHAINED if p not in chained]:
            missing = f"{' and '.join(left)}, found neither in {bin_dir} nor {ELSEWHERE}"
            click.echo(f"without {missing}: install them and run this again (host ports and bandwidth limits)")
    if rival := first_network(conf_dir):
        click.echo(f"{rival} comes before {CONFLIST} and wins: runtimes take the first file of {conf_dir} by name; remove it, or rename it to sort later")


@cni.command()
@bin_option
@conf_option
def uninstall(bin_dir: Path, conf_dir: Path) -> None:
    """Remove what install wrote, and nothing else."""
    found = False
    for plugin in (bin_dir / "tweed", bin_dir / "flannel"):
        aside = plugin.with_name(plugin.name + ASIDE)
        if os.path.lexists(plugin) and not is_ours(plugin):
            if os.path.lexists(aside):
                click.echo(f"left alone {plugin}: it is not tweed's; {aside.name} beside it is what was there before tweed", err=True)
            continue
        if os.path.lexists(aside):
            os.replace(aside, plugin)
            click.echo(f"brought back {plugin}")
        elif plugin.exists():
            plugin.unlink()
            click.echo(f"removed {plugin}")
        else:
            continue
        found = True
    if remove_module(bin_dir / MODULES):
        click.echo(f"removed {bin_dir / MODULES}")
    for path, ours in ((bin_dir / AGENT_FILE, True), (conf_dir / CONFLIST, uses_us(conf_dir / CONFLIST))):
        if path.exists() and ours:
            path.unlink()
            found = True
            click.echo(f"removed {path}")
        elif path.exists():
            click.echo(f"left alone {path}: it is not as tweed writes it", err=True)
    if not found:
        click.echo(f"no plugin of tweed's in {bin_dir}, no network of its in {conf_dir}", err=True)


def conflist(chained: Sequence[object]) -> bytes:
    """The network that install writes, with these plugins after ours."""
    return msgspec.json.format(msgspec.json.encode({"cniVersion": "1.0.0", "name": "tweed", "plugins": [FIRST, *chained]}), indent=2) + b"\n"


def is_as_written(path: Path) -> bool:
    """Whether nobody has changed it since: with whichever plugins there were then."""
    try:
        return path.read_bytes() in [conflist(chained) for count in range(3) for chained in itertools.combinations(CHAINED, count)]
    except OSError:
        return False


def build(*, required: bool) -> tuple[bytes, str] | None:
    """The plugin in C and what it is; None where no compiler works, or TweedError if it is required."""
    if BUILT.exists():
        return BUILT.read_bytes(), "the plugin, built with the image"
    why = "no C compiler"
    if compiler := shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"):
        with tempfile.TemporaryDirectory(prefix="tweed-cni-") as directory:
            output = Path(directory) / "relay"
            for how in (["-static"], []):  # static, so that it runs in any image and starts in half the time
                done = subprocess.run([compiler, "-O2", *how, "-o", output, SOURCE / "relay.c"], capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    return output.read_bytes(), f"the plugin, built by {compiler}"
            why = f"{compiler}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}"
    if required:
        raise TweedError(f"relay.c cannot be built: {why}; use --relay python")
    return None


def write_module(directory: Path) -> None:
    """relay.py, compiled here where that can be done, else by its first call (and by the first after an upgrade of Python)."""
    path = directory / "relay.py"
    replace(path, (SOURCE / "relay.py").read_bytes(), 0o644)
    compiling: list[str | Path] = [PYTHON, "-IS", "-c", "import py_compile, sys; py_compile.compile(sys.argv[1], doraise=True)", path]
    try:
        subprocess.run(compiling, capture_output=True, check=True)
        click.echo(f"wrote {path}: what the plugin does")
    except (OSError, subprocess.CalledProcessError):
        click.echo(f"wrote {path}: what the plugin does; {PYTHON}, which it needs where it runs, does not run here")


def remove_module(directory: Path) -> bool:
    """Whether there was one."""
    path, compiled = directory / "relay.py", directory / "__pycache__"
    found = path.exists()
    for each in (path, *compiled.glob("relay.*")):
        each.unlink(missing_ok=True)
    for each in (compiled, directory):
        with contextlib.suppress(OSError):  # somebody else's files are in it, or it is not there
            each.rmdir()
    return found


def replace(path: Path, content: bytes, mode: int) -> None:
    """The whole file or the old one: runtimes may look at any moment. Raises TweedError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise TweedError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def keep(plugin: Path) -> None:
    """A second name for somebody else's plugin, which stays where it is until ours replaces it. Raises TweedError."""
    aside = plugin.with_name(plugin.name + ASIDE)
    try:
        aside.unlink(missing_ok=True)
        os.link(plugin, aside)
    except OSError as error:
        raise TweedError(f"{aside} cannot be written: {error.strerror}") from None


def is_ours(plugin: Path) -> bool:
    """In C or Python, it names the file beside it."""
    try:
        return plugin.is_file() and b"/tweed.agent" in plugin.read_bytes()
    except OSError:
        return False


def uses_us(path: Path) -> bool:
    try:
        plugins: Any = msgspec.json.decode(path.read_bytes())["plugins"]
        return any(plugin["type"] == "tweed" for plugin in plugins)
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return False


def first_network(conf_dir: Path) -> str | None:
    """The file that runtimes would take before ours."""
    names = sorted(path.name for path in conf_dir.iterdir() if path.suffix in (".conf", ".conflist", ".json"))
    return names[0] if names[0] != CONFLIST else None
