"""CNI plugin of tweed: hands the call to the agent and its answer back. It understands nothing but VERSION.

plugin.py runs it; relay.c does the same: the protocol is in tweed's wire/cni.py, the files in agent/spool.py. Every import costs each container start:
posix is what os is made of, and here without what os imports beside it, which takes a millisecond.
"""

import posix
import sys
from _socket import AF_NETLINK, AF_PACKET, AF_UNIX, SCM_RIGHTS, SHUT_WR, SO_RCVTIMEO, SOCK_CLOEXEC, SOCK_RAW, SOCK_STREAM, SOL_SOCKET, socket, socketpair

TRIES, STEP_S = 195, 0.05  # ten seconds
ANSWER_S, UNANSWERED = 60, 100  # how long an agent may take, and how many tries it then was
QUEUE_MAX = 1000
STDIN_MAX = 1 << 20
CLONE_NEWNET = 0x40000000
VERSIONS = b'["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]'
VERSION_LETTERS = b"0123456789abcdefghijklmnopqrstuvwxyz.+-"
NO_AGENT = b'"msg":"no agent of tweed runs on this node, and none has since it was started","details":"start one: tweed agent"}'
NOT_UNDONE = b'"msg":"the agent went away while it attached the container, and this cannot be written down: DEL it"}'
NOT_QUEUED = b'"msg":"no agent of tweed runs on this node, and the queue of DELs cannot be written or is full: %s/cni-queue"}'


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[posix.write(descriptor, data) :]


def read_all(descriptor: int, most: int) -> bytes:
    """Raises OSError."""
    parts, size = [], 0
    while size <= most and (part := posix.read(descriptor, 65536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def read_file(path: bytes) -> bytes:
    """Its first bytes, none where there is no such file."""
    try:
        return posix.read(posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC), 65536)
    except OSError:
        return b""


def may_fail(function, *arguments) -> None:  # type: ignore[no-untyped-def]
    try:  # noqa: SIM105 (an import)
        function(*arguments)
    except OSError:
        pass


def version(config: bytes) -> bytes:
    """The configuration's cniVersion, without understanding the rest."""
    _, found, rest = config.partition(b'"cniVersion"')
    text = rest.lstrip(b" \t\r\n")[1:].lstrip(b" \t\r\n")[1:].partition(b'"')[0]
    return text if found and 0 < len(text) <= 32 and not text.strip(VERSION_LETTERS) else b"1.1.0"


def open_inside(command: bytes) -> list[int]:
    """The namespace, and where we may enter it an rtnetlink socket in it, IPv6's settings as seen from inside, and a packet socket."""
    found: list[int] = []
    try:
        found.append(posix.open(posix.environ[b"CNI_NETNS"], posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC))
        if command != b"DEL" and hasattr(posix, "setns"):  # Python 3.12
            posix.setns(found[0], CLONE_NEWNET)
            found.append(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0).detach())
            if command == b"ADD":
                found.append(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0).detach())
            found.append(posix.open("/proc/sys/net/ipv6/conf", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC))
    except (OSError, KeyError):
        pass
    return found


def ask(path: bytes, call: bytes, command: bytes) -> bytes | None:
    """The agent's answer; None when there is no agent, b"" when it went away without one."""
    agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    answer = None
    descriptors: list[int] = []
    try:
        agent.connect(path)
        answer = b""
        descriptors = open_inside(command)
        long = 8 if sys.maxsize >> 32 else 4
        agent.setsockopt(SOL_SOCKET, SO_RCVTIMEO, ANSWER_S.to_bytes(long, sys.byteorder) + bytes(long))
        rights = b"".join(each.to_bytes(4, sys.byteorder) for each in descriptors)
        sent = agent.sendmsg([call], [(SOL_SOCKET, SCM_RIGHTS, rights)] if rights else [])
        while descriptors:  # the agent has its own now: a packet socket's last close takes long
            posix.close(descriptors.pop())
        agent.sendall(call[sent:])
        agent.shutdown(SHUT_WR)
        answer = read_all(agent.fileno(), sys.maxsize)
    except OSError:
        pass
    while descriptors:
        posix.close(descriptors.pop())
    agent.close()
    return answer


def queue(run_dir: bytes, call: bytes) -> bool:
    """Leave the call for the agent's next start. False when that cannot be done."""
    may_fail(posix.mkdir, run_dir, 0o755)
    may_fail(posix.mkdir, run_dir + b"/cni-queue", 0o700)
    for number in range(QUEUE_MAX):
        path, partial = b"%s/cni-queue/%d" % (run_dir, number), b"%s/cni-queue/.%d" % (run_dir, number)
        if posix.access(path, posix.F_OK):
            continue
        try:
            file = posix.open(partial, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        except OSError:
            return False
        try:
            write_all(file, call)
            posix.link(partial, path)
            return True
        except (FileExistsError, FileNotFoundError):  # an agent that starts clears what is half written
            continue
        except OSError:
            return False
        finally:
            posix.close(file)
            may_fail(posix.unlink, partial)
    return False


def serve(agent_file: bytes) -> tuple[int, bytes, bytes]:
    """Exit code, and what goes to stdout and stderr. `agent_file`: which says the agent's directory."""
    command = posix.environ.get(b"CNI_COMMAND", b"")
    try:
        config = read_all(0, STDIN_MAX)
    except OSError:  # closed: as if it were empty
        config = b""
    if command == b"VERSION":
        return 0, b'{"cniVersion":"%s","supportedVersions":%s}' % (version(config), VERSIONS), b""
    run_dir = read_file(agent_file).partition(b"\n")[0] or b"/run/tweed"
    variables = [b"%s=%s\0" % each for each in posix.environ.items() if each[0].startswith(b"CNI_") and each[0] != b"CNI_PATH"]
    call = b"tweed-cni=1\0" + b"".join(variables) + b"\0" + config
    code, words = 50 if command == b"STATUS" else 11, b""
    pause = socketpair()
    pause[0].settimeout(STEP_S)
    tries = 0
    while tries < TRIES and not words:
        answer = ask(run_dir + b"/cni.sock", call, command)
        if answer:
            log, _, text = answer[1:].partition(b"\0")
            return answer[0], text, log and log + b"\n"
        if answer is not None and command == b"ADD":  # whether it was carried out nobody knows: it is to be taken back
            code, words = (11, b"") if queue(run_dir, call) else (5, NOT_UNDONE)
            break
        if command == b"DEL":
            if queue(run_dir, call):
                return 0, b"", b""
            words = NOT_QUEUED % run_dir
        tries += 1 if answer is None else UNANSWERED
        may_fail(pause[0].recv, 1)
    rest = words or read_file(run_dir + b"/cni-away") or NO_AGENT
    return 1, b'{"cniVersion":"%s","code":%d,%s' % (version(config), code, rest), b""


def run(agent_file: bytes) -> None:
    """Does not return."""
    status, document, log = serve(agent_file)
    write_all(2, log)
    write_all(1, document)
    posix._exit(status)
