"""Make standard input, output and error usable, however the program was started.

A daemon may have closed some of the descriptors 0 to 2, and they may lead to a full disk. All three are opened here,
in Python as well, so that no file or socket of this program gets their numbers and is read or written by mistake,
here or in a process that it starts.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def settle() -> None:
    """Open the standard streams that are closed, and let no message fail; call this before anything else is opened.

    Standard input is then empty. Output is not lost silently: /dev/null is opened for reading only.
    """
    for handle, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(handle)
        except OSError:
            opened = os.open(os.devnull, flags)
            os.dup2(opened, handle)
            os.set_inheritable(handle, True)
            if opened != handle:
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Messages(2, "w", closefd=False)),
        encoding=getattr(sys.stderr, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=True,
    )


def abandon_output() -> None:
    """Discard what standard output still holds: Python would try to write it again at exit."""
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, 1)
    os.close(handle)


def leave(code: object) -> None:
    """End the process at once: a thread busy in C++ would crash while Python shuts down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


class _Messages(io.FileIO):
    """Standard error that ignores failed writes, on a full disk for example, so that the run goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data))
