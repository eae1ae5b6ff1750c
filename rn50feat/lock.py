"""Keep two runs apart, and readers away from the milliseconds of a commit.

In: the path of a store. Out: two kinds of lock. A run holds ``<store>-lock``
for its whole length; a commit holds the store itself exclusively, and readers
share it while they read. Both are ``flock`` locks: they end with the process
that holds them, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rn50feat.errors import StoreBusyError, StoreError, StoreLockedError

PATIENCE = 60.0  # seconds that a reader waits for commits before it gives up


@contextmanager
def run_lock(store: Path) -> Iterator[None]:
    """Hold the right to write to `store`.

    Raises `StoreLockedError` at once when another process holds it, and
    `StoreError` when the folder cannot be written.
    """
    path = store.with_name(store.name + "-lock")
    handle = _acquire(path, store)
    try:
        with suppress(OSError):  # on a full disk it is locked all the same, without a name
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        yield
    finally:
        with suppress(OSError):  # a lock file that stays is no lock
            path.unlink()  # while it is still locked: see `_acquire`
        os.close(handle)


def _acquire(path: Path, store: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(
                f"{store} cannot be written ({error.strerror}): choose a folder that exists and that you may write to"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between our open and our lock.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            holder = _holder(handle)
            os.close(handle)
            raise StoreLockedError(f"{store} is in use by {holder}: try again when that run has ended") from error
        except OSError as error:  # a network file system without locks
            os.close(handle)
            raise _unlockable(store, error) from error
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        return f"process {record['pid']} on {record['host']}"
    except (ValueError, KeyError, TypeError):  # it was caught between its lock and its signature
        return "another run"


def _unlockable(store: Path, error: OSError) -> StoreError:
    return StoreError(f"{store} cannot be locked ({error.strerror}): keep it on a file system with locks, a local one")


@contextmanager
def held(handle: int, path: Path, *, alone: bool, patience: float = PATIENCE) -> Iterator[None]:
    """Hold an open store, alone or together with other readers.

    Raises `StoreBusyError` when that takes more than `patience` seconds.
    """
    deadline = time.monotonic() + patience
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StoreBusyError(
                    f"{path} was kept open by another program for {patience:.0f} s: close it there and try again"
                ) from error
            time.sleep(0.002)
        except OSError as error:
            raise _unlockable(path, error) from error
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
