#!/usr/bin/python3 -IS
"""CNI plugin of tweed, where there is no compiler for relay.c. What it does is in tweed.d/relay.py: modules are kept compiled, scripts are not."""

import posix
import sys

# Symbolic links resolved: what belongs to it is beside the file itself.
HERE = posix.readlink(f"/proc/self/fd/{posix.open(__file__, posix.O_RDONLY | posix.O_CLOEXEC)}").rpartition("/")[0]
sys.path.insert(0, HERE + "/tweed.d")  # the others stay: of some Pythons _socket is a file
try:
    import relay  # type: ignore[import-not-found]
except ImportError:
    MISSING = b'{"cniVersion":"1.0.0","code":5,"msg":"tweed.d/relay.py, without which the plugin can do nothing, is not beside it: tweed cni install"}'
    posix.write(1, MISSING)
    posix._exit(1)
relay.run((HERE + "/tweed.agent").encode(errors="surrogateescape"))
