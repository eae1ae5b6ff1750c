"""Find out how much of its machine this process may use: cores, memory, open files.

Looks at the affinity of the process, its control groups (v1 and v2) and its
``ulimit``s. Returns the number of cores and of bytes that it may use, and
explains errors that a limit causes. A container sees all cores and all memory
of its host: how much of them it may use is in its control groups.
"""

from __future__ import annotations

import errno
import math
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rn50feat.errors import LimitError

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")

# How C and C++ libraries say that they are out of memory.
_NO_MEMORY = re.compile(r"bad_?\s?alloc|cannot allocate|can't allocate|out of memory|failed to map segment", re.I)


def cores() -> int:
    """Count the cores that this process may use."""
    return quota() or _seen()


def quota() -> int | None:
    """Count the cores, rounded up, that the quota of its groups leaves this process; None for all that it sees."""
    quotas = [math.ceil(found) for group in _groups("cpu") if (found := _quota(group)) is not None]
    return min(quotas) if quotas and min(quotas) < _seen() else None


def _seen() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int | None:
    """Count the bytes that its machine and groups leave this process beyond what is in use; None if unknown."""
    found = [_available(), *map(_left, _groups("memory"))]
    known = [size for size in found if size is not None]
    return max(0, min(known)) if known else None


def raise_open_files() -> None:
    """Raise the limit on open files as far as allowed: each decoding process takes one here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors in the block that a limit causes into `LimitError`."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError, ImportError) as error:
        if (limit := exceeded(error)) is None:
            raise
        raise limit from error


def exceeded(error: BaseException) -> LimitError | None:
    """Explain an error that a limit of this process or its machine causes; return None for any other."""
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_working_folder():
        return LimitError("the working folder is gone: change to one that exists")
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return _worded("open files", "n", resource.RLIMIT_NOFILE, "raise it, or use fewer --workers")
    if number == errno.EFBIG:
        return _worded("the size of a file", "f", resource.RLIMIT_FSIZE, "raise it", 1024)
    if isinstance(error, BlockingIOError) or "can't start new thread" in text:
        return _worded("processes and threads", "u", resource.RLIMIT_NPROC, "raise it, or use fewer --workers")
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(text):
        return _worded("memory", "v", resource.RLIMIT_AS, "raise it", 1024)
    return None


def _has_working_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _worded(what: str, option: str, kind: int, remedy: str, unit: int = 1) -> LimitError:
    soft = resource.getrlimit(kind)[0]
    if soft == resource.RLIM_INFINITY:
        return LimitError(
            f"this machine or container has no more {what} available: use fewer --workers, or stop other programs"
        )
    return LimitError(f"the limit on {what} (ulimit -{option} {soft // unit}) is too low: {remedy}")


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, each from its own up to the visible root."""
    for line in (_text(MEMBERSHIP) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # A container that sees its host's path finds its limits in the root.
        for base in [GROUPS / controllers, GROUPS / controller] if controllers else [GROUPS, GROUPS / "unified"]:
            group = base / path.lstrip("/")
            yield from [group, *(above for above in group.parents if above.is_relative_to(base))]


def _quota(group: Path) -> float | None:
    """Read how many cores a group may use; None for any number."""
    both = (_text(group / "cpu.max") or "").split()  # version 2
    quota, period = both if len(both) == 2 else (_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    with suppress(TypeError, ValueError, ZeroDivisionError):  # "max", or no such file
        if (cores := int(quota) / int(period)) > 0:  # type: ignore[arg-type]
            return cores
    return None


def _left(group: Path) -> int | None:
    """Count the bytes that a group may still take; files that are only cached are not in use."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(TypeError, ValueError):  # "max", or no such file
            most, used = (int(_text(group / name)) for name in (limit, usage))  # type: ignore[arg-type]
            return most - used + _field(group / "memory.stat", cached)
    return None


def _available() -> int | None:
    """Read the kernel's estimate of the bytes available to programs."""
    kilobytes = _field(MEMINFO, "MemAvailable:")
    return 1024 * kilobytes if kilobytes else None


def _field(path: Path, name: str) -> int:
    """Read the number after a name in a file; 0 if there is none."""
    match = re.search(rf"^{name}\s+(\d+)", _text(path) or "", re.M)
    return int(match[1]) if match else 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
