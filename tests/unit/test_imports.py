"""Who may import whom (docs/architecture.md), enforced from the imports in every file under src/tweed, those inside functions too."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "tweed"


class Rule(NamedTuple):
    """What a part may import of tweed (names stand for all below them), and of others: None is anything installed."""

    tweed: tuple[str, ...]
    third_party: tuple[str, ...] | None = None
    pure: bool = False


VALUES = ("model", "errors", "addr", "config")
# All of the walk that needs no kernel. What is said in sentences and pictures comes last in it.
TABLES = (
    "trace.snapshot",
    "trace.vocabulary",
    "trace.result",
    "trace.bits",
    "trace.frames",
    "trace.read",
    "trace.parse",
    "trace.fib",
    "trace.rules",
    "trace.tables",
    "trace.cluster",
    "trace.trail",
    "trace.gates",
    "trace.path",
    "trace.underlay",
    "trace.vxlan",
    "trace.udpmode",
    "trace.inside",
    "trace.wire",
    "trace.walk",
    "trace.ends",
    "trace.rtnetlink",
    "trace.rtnetlink_routes",
    "trace.intent",
    "trace.firewall",
    "trace.iptables",
    "trace.xfrm",
    "trace.findings",
    "trace.events",
    "trace.sights",
    "trace.beside",
    "trace.drops",
    "trace.judge",
    "trace.clocks",
    "trace.recording",
    "trace.join",
)
# Held against leases: what rows a lease needs, `plan` says.
DIAGNOSIS = ("trace.mend", "trace.case_vtep", "trace.case_routes", "trace.diagnose", "trace.trip")
SHOWN = ("trace.messages", "trace.render", "trace.svg", "trace.ink", "trace.figure", "trace.pcap")
PURE = ("wire", "plan", *TABLES, *DIAGNOSIS, *SHOWN, "doctor.checks")
LOWER = (*VALUES, *PURE, "kernel", "stores")
LAST = ("cli", "commands", "web")

# The longest name that fits a module decides. `x.__init__` is the package's own file, which runs before all of its modules.
RULES = {
    "__init__": Rule((), ()),
    "__main__": Rule(("cli",), ()),
    "model": Rule(VALUES, ("msgspec",)),
    "errors": Rule(VALUES, ("msgspec",)),
    "addr": Rule(VALUES, ("msgspec",)),
    "config": Rule(VALUES, ("msgspec",)),
    "wire": Rule((*VALUES, "wire"), ("msgspec",), pure=True),
    "plan": Rule((*VALUES, "wire", "plan"), ("msgspec",), pure=True),
    "trace.__init__": Rule((), (), pure=True),
    **dict.fromkeys(TABLES, Rule((*VALUES, "wire", *TABLES), ("msgspec",), pure=True)),
    **dict.fromkeys(DIAGNOSIS, Rule((*VALUES, "wire", "plan", *TABLES, *DIAGNOSIS), ("msgspec",), pure=True)),
    **dict.fromkeys(SHOWN, Rule((*VALUES, "wire", *TABLES, *SHOWN), ("msgspec",), pure=True)),
    "doctor.__init__": Rule((), (), pure=True),
    "doctor.checks": Rule((*VALUES, "wire", "trace.snapshot", "doctor.checks"), ("msgspec",), pure=True),
    "bpf": Rule((), ()),
    "kernel": Rule((*VALUES, *PURE, "kernel", "bpf")),
    "stores": Rule((*VALUES, *PURE, "stores", "kernel.inotify")),
    "agent": Rule((*LOWER, "agent", "udp.control", "udp.peers", "udp.packet")),
    "lab": Rule((*LOWER, "lab", "agent")),
    "bench.report": Rule((), ("msgspec",), pure=True),
    "bench": Rule((*LOWER, "lab", "bench")),
    "trace": Rule((*LOWER, "trace")),
    "doctor": Rule((*LOWER, "doctor")),
    "udp": Rule((*LOWER, "udp")),
    "fastpath": Rule((*LOWER, "fastpath")),
    "cni.__init__": Rule((), ()),
    "cni.relay": Rule((), ()),
    "cni.plugin": Rule((), ("relay",)),
    "cni": Rule((*VALUES, *PURE, "cni"), ("msgspec",)),
    "web": Rule((*LOWER, "agent", "lab", "trace", "doctor", "web")),
    "commands": Rule((*LOWER, "agent", "lab", "trace", "doctor", "udp", "fastpath", "cni", "web", "bench", "commands")),
    "cli": Rule((*LOWER, "agent", "lab", "trace", "doctor", "udp", "fastpath", "cni", "web", "bench", "commands", "cli")),
}
# What reaches the outside world, the clock or chance. Their arguments come from outside, so the decisions can be tested as values.
IMPURE = {"asyncio", "ctypes", "fcntl", "importlib", "logging", "multiprocessing", "os", "pathlib", "posix"}
IMPURE |= {"random", "secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time"}


def fits(module: str, names: tuple[str, ...]) -> str | None:
    """The longest of `names` that is `module` or a package around it."""
    return max((name for name in names if module == name or module.startswith(name + ".")), key=len, default=None)


# A line that begins like an import, up to its closing parenthesis. To parse these alone takes a tenth of the time; two statements in one line
# are not let through by ruff.
IMPORT = re.compile(r"^[ \t]*(?:import|from) [^\n(]*(?:\([^)]*\))?", re.MULTILINE)


def statements(source: str) -> Iterator[tuple[int, ast.AST]]:
    """Every import with its line; in a module that imports by a function, everything."""
    if "import_module" in source or "__import__" in source:
        yield from ((getattr(node, "lineno", 0), node) for node in ast.walk(ast.parse(source)))
        return
    for found in IMPORT.finditer(source):
        with contextlib.suppress(SyntaxError):  # a sentence
            yield source.count("\n", 0, found.start()) + 1, ast.parse(found[0].strip()).body[0]


def imports(module: str, source: str, modules: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports; `from tweed.plan import diff` is `tweed.plan.diff` if that is a module."""
    package = ["tweed", *module.split(".")[:-1]]
    for line, node in statements(source):
        if isinstance(node, ast.Import):
            yield from ((line, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join(around + (node.module.split(".") if node.module else []))
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield line, inner if inner.removeprefix("tweed.") in modules else origin
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
            if function in ("import_module", "__import__"):
                yield line, node.args[0].value


def violations(sources: Mapping[str, str]) -> list[str]:
    """One line per import against the rules. `sources`: text by dotted module name without `tweed.`, packages as `x.__init__`."""
    modules = frozenset(sources) | {name.removesuffix(".__init__") for name in sources}
    found = []
    for module, source in sorted(sources.items()):
        name = fits(module, tuple(RULES))
        if name is None:
            found.append(f"{module}: no rule in tests/unit/test_imports.py says what it may import")
            continue
        rule = RULES[name]
        for line, target in imports(module, source, modules):
            top, _, rest = target.partition(".")
            if top == "tweed":
                allowed = module != "cni.relay" if not rest else fits(rest, rule.tweed) is not None
            elif top in sys.stdlib_module_names:
                allowed = not (rule.pure and top in IMPURE)
            else:
                allowed = rule.third_party is None or top in rule.third_party
            if not allowed:
                found.append(f"{module}:{line} imports {target}; {name} may not")
    return found


def test_every_import_in_the_tree_keeps_the_rules() -> None:
    sources = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path.read_text() for path in SOURCE.rglob("*.py")}
    assert {"__init__", "model", "stores.__init__"} <= sources.keys()
    found = violations(sources)
    assert not found, "\n".join(found)


NAMES = """
    __init__ model wire.__init__ wire.rtnl plan.__init__ plan.diff kernel.__init__ kernel.inotify kernel.table stores.__init__ stores.sqlite
    agent.__init__ agent.client lab.__init__ lab.up cni.__init__ cni.relay trace.__init__ trace.walk trace.live
    commands.__init__ commands.status web.__init__ cli
"""
TREE = dict.fromkeys(NAMES.split(), "")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model", "import os, msgspec\nfrom tweed.addr import Prefix"),
        ("wire.rtnl", "import struct\nfrom tweed.wire import packet\nfrom . import packet"),
        ("plan.diff", "from tweed import __version__\nfrom tweed.wire.rtnl import encode"),
        ("kernel.table", "import socket\nfrom ..plan.diff import diff"),
        ("stores.sqlite", "from tweed.kernel import inotify\nfrom tweed.kernel.inotify import Watch"),
        ("lab.up", "from tweed.agent import client"),
        ("trace.live", "from tweed.kernel import table\nfrom .walk import walk"),
        ("cni.relay", "import os, socket"),
        ("cli", "def main():\n    from tweed.commands import status\n    import rich"),
        ("commands.status", "import click\nfrom tweed.web import page"),
    ],
)
def test_allowed(module: str, source: str) -> None:
    assert violations({**TREE, module: source}) == []


@pytest.mark.parametrize(
    ("module", "source", "line", "target"),
    [
        ("model", "import click", 1, "click"),
        ("model", "from tweed.wire import rtnl", 1, "tweed.wire.rtnl"),
        ("wire.rtnl", "import socket", 1, "socket"),
        ("wire.rtnl", "\nimport os.path", 2, "os.path"),
        ("wire.rtnl", "from time import monotonic", 1, "time"),
        ("wire.rtnl", "import pyroute2", 1, "pyroute2"),
        ("plan.diff", "def now():\n    import random", 2, "random"),
        ("plan.diff", "if TYPE_CHECKING:\n    from tweed.kernel import table", 2, "tweed.kernel.table"),
        ("plan.diff", "from ..kernel import table", 1, "tweed.kernel.table"),
        ("plan.diff", "from .. import kernel", 1, "tweed.kernel"),
        ("plan.__init__", "from ..stores import sqlite", 1, "tweed.stores.sqlite"),
        ("kernel.table", "from tweed.stores import open_store", 1, "tweed.stores"),
        ("stores.sqlite", "from tweed.kernel import table", 1, "tweed.kernel.table"),
        ("stores.sqlite", "import tweed.kernel", 1, "tweed.kernel"),
        ("agent.client", "from tweed.lab import up", 1, "tweed.lab.up"),
        ("agent.client", "from tweed import cli", 1, "tweed.cli"),
        ("lab.up", "from tweed.commands.status import main", 1, "tweed.commands.status"),
        ("lab.up", "importlib.import_module('tweed.web')", 1, "tweed.web"),
        ("trace.walk", "from tweed.trace import live", 1, "tweed.trace.live"),
        ("trace.__init__", "from tweed.trace.live import watch", 1, "tweed.trace.live"),
        ("commands.status", "from tweed.cli import main", 1, "tweed.cli"),
        ("cni.relay", "import msgspec", 1, "msgspec"),
        ("cni.relay", "import tweed", 1, "tweed"),
        ("cni.relay", "from tweed.errors import TweedError", 1, "tweed.errors"),
    ],
)
def test_forbidden(module: str, source: str, line: int, target: str) -> None:
    (found,) = violations({**TREE, module: source})
    assert found.startswith(f"{module}:{line} imports {target};")


def test_a_module_without_a_rule_is_named() -> None:
    assert violations({**TREE, "utils": ""}) == ["utils: no rule in tests/unit/test_imports.py says what it may import"]


def test_nothing_below_imports_what_comes_last() -> None:
    below = {name: rule for name, rule in RULES.items() if name not in (*LAST, "__main__")}
    assert [name for name, rule in below.items() if any(fits(last, rule.tweed) for last in LAST)] == []
