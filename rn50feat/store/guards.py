"""Guard writes: errors of the disk become `StoreError`, and Ctrl-C waits until HDF5 has finished a call."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rn50feat.durable.disk import advice
from rn50feat.errors import StoreError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk's errors into `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}): {advice(error)} and run again;"
            " what was committed is safe"
        ) from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C: an exception while HDF5 is calling back for bytes would crash it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: kept.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if kept:
            signal.raise_signal(signal.SIGINT)
