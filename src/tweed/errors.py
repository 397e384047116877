"""The few errors of tweed.

Every message is one line: what, where, what to do. Foreign errors (sqlite3, grpc, OSError) are translated into
these once, where they enter; code that could go on without a result returns a `model.Failure` instead.
"""


class TweedError(Exception):
    """Something a caller must act on. `exit_code` is what the command line answers with."""

    exit_code = 1


class UsageError(TweedError):
    """A flag, a file or a configuration value that cannot be used; names the key and the value."""

    exit_code = 2


class KernelError(TweedError):
    """The kernel refused: which operation, its errno and its own words."""

    def __init__(self, operation: str, errno: int, text: str) -> None:
        super().__init__(f"{operation}: {text}")
        self.operation = operation
        self.errno = errno
        self.text = text


class StoreError(TweedError):
    """The lease store answered with something other than what was asked for."""


class StoreUnavailable(StoreError):
    """The store cannot be reached now; asking again later is right."""


class Conflict(StoreError):
    """A compare-and-swap lost: the key exists already, or somebody changed it since it was read."""


class Compacted(StoreError):
    """The revision to watch from is no longer kept: take a new snapshot, then watch from its revision."""
