"""Keep two runs apart, and readers out during the milliseconds of a commit.

Takes the path of a store and holds one of two kinds of lock. A run holds
``<store>-lock`` from start to end; a commit locks the store itself exclusively,
and readers share it while they read. A commit that has to wait for readers
holds ``<store>-waiting``, the turnstile: readers who come after it wait for
their turn. All are ``flock`` locks: they end with the process that holds them,
however it ends.

``HDF5_USE_FILE_LOCKING`` means the same as for HDF5: with FALSE, readers and
commits take no lock; with TRUE, a file system without locks is an error for
readers, too. FALSE also states that nobody else writes, so that a run may go on
even without its own lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rn50feat.durable.disk import close
from rn50feat.errors import StoreBusyError, StoreError, StoreLockedError

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that a reader waits for commits before it gives up
TURN = 2.0  # seconds that the turnstile is closed at first, doubled each time
PAUSE = 0.5  # seconds that it is open in between: others need not wait behind one long reader
_POLL = 0.002
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)

_warned: set[Path] = set()  # stores for which missing locks were reported
_runs: dict[Path, int] = {}  # run locks of this process, and the thread of each


class _Reads(threading.local):
    """The stores that this thread is reading, and how many times each."""

    def __init__(self) -> None:
        self.count: Counter[Path] = Counter()


_reads = _Reads()


def setting() -> str:
    """Read HDF5_USE_FILE_LOCKING as one of TRUE, FALSE and BEST_EFFORT, the default."""
    value = os.environ.get("HDF5_USE_FILE_LOCKING", "").upper()
    return {"1": "TRUE", "0": "FALSE", "TRUE": "TRUE", "FALSE": "FALSE"}.get(value, "BEST_EFFORT")


@contextmanager
def run_lock(store: Path) -> Iterator[None]:
    """Hold the right to write to `store`.

    Raises `StoreLockedError` at once if another process holds it, and
    `StoreError` if the folder cannot be written or has no locks, unless the
    user states that nobody else writes.
    """
    path = store.with_name(store.name + "-lock")
    handle = _acquire(path, store)
    _runs[store] = threading.get_ident()
    try:
        with suppress(OSError):  # on a full disk the lock works too, but does not name its holder
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        with suppress(OSError):  # left by a run that was killed while it waited
            waiting_path(store).unlink(missing_ok=True)
        yield
    finally:
        del _runs[store]
        with suppress(OSError):  # a lock file that stays behind locks nothing
            path.unlink()  # while it is still locked: see `_acquire`
        close(handle)


def held_by_this_thread(store: Path) -> bool:
    """Check whether this thread is in a `run_lock` of `store`."""
    return _runs.get(store) == threading.get_ident()


def _acquire(path: Path, store: Path) -> int:
    while True:
        try:
            handle = _opened(path)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _no_lock_file(path) from error
            raise StoreError(
                f"{store} cannot be written ({error.strerror}): choose an existing folder that you may write to"
            ) from error
        try:
            _require_plain(handle, path)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between our open and our lock.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            holder = _holder(handle)
            close(handle)
            raise StoreLockedError(f"{store} is in use by {holder}: try again when that run has ended") from error
        except OSError as error:
            if error.errno in _UNSUPPORTED and setting() == "FALSE":
                return handle
            close(handle)
            raise _unlockable(store, error) from error
        except StoreError:
            close(handle)
            raise
        close(handle)


def _opened(path: Path) -> int:
    """Open or create a lock file; a symbolic link is an error."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def _require_plain(handle: int, path: Path) -> None:
    """Raise `StoreError` for a lock file that is also another file, which writing to it would change."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise _no_lock_file(path)


def _no_lock_file(path: Path) -> StoreError:
    return StoreError(f"{path} is not a lock file, but a folder, a device or a link to another file: remove it")


def _holder(handle: int) -> str:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        return f"process {record['pid']} on {record['host']}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # it is locked, but not signed yet
        return "another run"


def _unlockable(store: Path, error: OSError) -> StoreError:
    if error.errno not in _UNSUPPORTED:
        return StoreError(f"{store} cannot be locked ({error.strerror}): check the disk and run again")
    return StoreError(
        f"{store} is on a file system without locks ({error.strerror}): write to a local disk, or set"
        " HDF5_USE_FILE_LOCKING=FALSE if nobody else writes to it"
    )


def waiting_path(store: Path) -> Path:
    """Name the file of a store's turnstile."""
    return store.with_name(store.name + "-waiting")


@contextmanager
def shared(handle: int, path: Path) -> Iterator[bool]:
    """Hold an open store together with other readers; yield whether it is locked.

    It is not if HDF5_USE_FILE_LOCKING is FALSE or the file system has no locks.
    Raises `StoreBusyError` if that takes more than `PATIENCE` seconds.
    """
    if setting() == "FALSE":
        yield False
        return
    mine = _reads.count
    deadline = time.monotonic() + PATIENCE
    if not mine[path]:  # a thread that holds it must not wait for a commit that waits for the thread
        _poll(lambda: not awaited(path), deadline)
    try:
        locked = _poll(lambda: _try(handle, fcntl.LOCK_SH), deadline)
    except OSError as error:
        if error.errno not in _UNSUPPORTED or setting() == "TRUE":
            raise _unlockable(path, error) from error
        _warn(path, error)
        yield False
        return
    if not locked:
        raise _busy(path, PATIENCE)
    mine[path] += 1
    try:
        yield True
    finally:
        mine[path] -= 1
        _release(handle)


def _warn(path: Path, error: OSError) -> None:
    if path not in _warned:
        _warned.add(path)
        logger.warning(
            "%s is on a file system without locks (%s): results may be wrong if a run writes to it meanwhile",
            path,
            error.strerror,
        )


@contextmanager
def alone(handle: int, path: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold an open store, writable through `handle`, exclusively; new readers wait.

    Raises `StoreBusyError` if that takes more than `patience` seconds.
    """
    if setting() == "FALSE":
        yield
        return
    try:
        if not _try(handle, fcntl.LOCK_EX) and not _wait_alone(handle, path, time.monotonic() + patience):
            raise _busy(path, patience)
    except OSError as error:
        raise _unlockable(path, error) from error
    try:
        yield
    finally:
        _release(handle)


def _wait_alone(handle: int, path: Path, deadline: float) -> bool:
    """Wait for the current readers while new ones queue; return whether the lock was acquired in time."""
    turn = TURN
    while True:
        with _turnstile(path):
            if _poll(lambda: _try(handle, fcntl.LOCK_EX), min(deadline, time.monotonic() + turn)):
                return True
        if _poll(lambda: _try(handle, fcntl.LOCK_EX), min(deadline, time.monotonic() + PAUSE)):
            return True
        if time.monotonic() >= deadline:
            return False
        turn = min(2 * turn, PATIENCE / 2)


@contextmanager
def _turnstile(store: Path) -> Iterator[None]:
    """Close the turnstile; go on without it if it is closed already or the folder cannot be written."""
    path = waiting_path(store)
    handle = -1
    with suppress(OSError):
        handle = _opened(path)
        _poll(lambda: _try(handle, fcntl.LOCK_EX), time.monotonic() + PAUSE)  # a reader may be checking it right now
    try:
        yield
    finally:
        if handle >= 0:
            with suppress(OSError):
                path.unlink()
            close(handle)


def awaited(store: Path) -> bool:
    """Check whether a commit waits for the readers of `store`."""
    try:
        handle = os.open(waiting_path(store), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # there is none, as almost always: 2 µs
        return False
    try:
        return not _try(handle, fcntl.LOCK_SH)  # a killed run leaves it unlocked
    except OSError:
        return False
    finally:
        close(handle)


def _try(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _poll(done: Callable[[], bool], deadline: float) -> bool:
    """Poll until `done` or the deadline; return whether it is done."""
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _release(handle: int) -> None:
    with suppress(OSError):  # closing it does the same
        fcntl.flock(handle, fcntl.LOCK_UN)


def _busy(path: Path, patience: float) -> StoreBusyError:
    return StoreBusyError(f"{path} was kept open by another program for {patience:.0f} s: close it there and try again")
