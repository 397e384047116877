"""A container runtime as far as CNI sees one: what libcni does with a list of plugins, in a few lines, and namespaces for containers."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.system.cluster import Namespace, Node

DEBIAN = Path("/usr/lib/cni")


class Answer(NamedTuple):
    """What a plugin left behind. `document`: stdout as JSON, None where there is none."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout) if self.stdout else None

    @property
    def error(self) -> int:
        """The code of the error document, which is checked for its form."""
        found = self.document
        assert self.code != 0 and {"cniVersion", "code", "msg"} <= found.keys() and isinstance(found["code"], int) and "\n" not in found["msg"], self
        return found["code"]


class PluginFailed(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.stdout or answer.stderr)
        self.answer = answer


class Runtime:
    """On one node, with plugins in these directories, the first that has one wins."""

    def __init__(self, node: Node, *directories: Path) -> None:
        self.node = node
        self.directories = [*directories, DEBIAN]
        self.results: dict[tuple[str, str], Any] = {}

    def popen(self, plugin: str, config: Any, **variables: str) -> subprocess.Popen[str]:
        path = next(directory / plugin for directory in self.directories if (directory / plugin).exists())
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_PATH": ":".join(map(str, self.directories)), **variables}
        process = subprocess.Popen(
            self.node.argv(str(path)),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it need not read what is too long
            process.stdin.write(config if isinstance(config, str) else json.dumps(config))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdin = None
        return process

    def run(self, plugin: str, config: Any, **variables: str) -> Answer:
        """One plugin, once."""
        process = self.popen(plugin, config, **variables)
        out, err = process.communicate(timeout=120)
        return Answer(process.returncode, out, err)

    def chain(self, command: str, conflist: Any, container: str, netns: str, ifname: str = "eth0", args: str = "", capabilities: Any = None) -> Any:
        """ADD, CHECK or DEL of a list of plugins as libcni does it; the result. Raises PluginFailed."""
        variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": netns}
        if args:
            variables["CNI_ARGS"] = args
        result = None if command == "ADD" else self.results.get((container, ifname))
        plugins = conflist["plugins"] if command != "DEL" else conflist["plugins"][::-1]
        for plugin in plugins:
            config = copy.deepcopy(plugin) | {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
            declared = config.pop("capabilities", {})
            if given := {name: value for name, value in (capabilities or {}).items() if declared.get(name)}:
                config["runtimeConfig"] = given
            if result is not None:
                config["prevResult"] = result
            answer = self.run(plugin["type"], config, **variables)
            if answer.code:
                raise PluginFailed(answer)
            if command == "ADD":
                result = self.results[container, ifname] = answer.document
        if command == "DEL":
            self.results.pop((container, ifname), None)
        return result

    def add(self, conflist: Any, container: str, netns: str, **more: Any) -> Any:
        """As a runtime must: when a plugin fails, all are told to delete."""
        try:
            return self.chain("ADD", conflist, container, netns, **more)
        except PluginFailed:
            self.chain("DEL", conflist, container, netns, **more)
            raise

    def delete(self, conflist: Any, container: str, netns: str, **more: Any) -> None:
        self.chain("DEL", conflist, container, netns, **more)

    def check(self, conflist: Any, container: str, netns: str, **more: Any) -> None:
        self.chain("CHECK", conflist, container, netns, **more)


class Sandbox(Namespace):
    """A container's network namespace as runtimes make it: nothing in it but a loopback that is down."""

    def __init__(self) -> None:
        super().__init__()
        self.sh("ip link set lo down")

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"
