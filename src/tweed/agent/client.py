"""Ask an agent over its unix socket: HTTP with JSON, standard library only, so that commands start fast."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Any

import msgspec

from tweed.errors import TweedError


class AgentError(TweedError):
    """The agent cannot be reached, or answered with an error; the message is its own."""


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def call(socket_path: Path, method: str, path: str, body: Any = None, *, timeout_s: float = 10.0) -> Any:
    """One request; the decoded JSON answer, or the text of one that is not JSON. Raises AgentError with one line."""
    connection = UnixConnection(socket_path, timeout_s)
    try:
        connection.request(method, path, None if body is None else msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
    except FileNotFoundError:
        raise AgentError(f"no agent at {socket_path}: start one with `tweed agent`, or name its socket with --socket") from None
    except ConnectionRefusedError:
        raise AgentError(f"no agent listens at {socket_path} any more: it ended; look at its log and start it again") from None
    except PermissionError:
        raise AgentError(f"{socket_path}: permission denied; the agent's socket is for root") from None
    except TimeoutError:
        raise AgentError(f"the agent at {socket_path} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise AgentError(f"the agent at {socket_path} cannot be asked: {error.strerror or error}") from None
    finally:
        connection.close()
    is_json = (response.getheader("Content-Type") or "").startswith("application/json")
    answer = msgspec.json.decode(data) if is_json and data else data.decode(errors="replace")
    if response.status >= 400:
        raise AgentError(answer["error"] if isinstance(answer, dict) and "error" in answer else f"{method} {path}: {response.status} {answer}")
    return answer
