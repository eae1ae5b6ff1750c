"""Share memory among decoding processes, and limit the time that an image may take.

In: the memory of the machine, and the number of processes. Out: a share for
each of them, which it never exceeds; and, for a large image, a turn with
more, which only one of them has at a time.
"""

from __future__ import annotations

import fcntl
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LEAST = 64 << 20  # bytes of the smallest share: a 12-megapixel JPEG takes 40 MB, decoded at half its size


def needed(max_pixels: int) -> int:
    """Estimate the bytes that decoding an image of `max_pixels` takes.

    Pillow takes 4 a pixel and as many for each conversion; 512 MB are for the file itself and the rest.
    """
    return 12 * max_pixels + (512 << 20)


def seconds(max_pixels: int) -> float:
    """Limit the seconds of a core that an image of `max_pixels` may take: a PNG of 200 megapixels took 10 s."""
    return max(60.0, 60.0 * max_pixels / 200e6)


def gigabytes(size: int) -> str:
    """Write bytes as the ledger shows them."""
    return f"{size / 1e9:.2g}"


def largest_file(max_pixels: int) -> int:
    """Limit the bytes of the file of an image of `max_pixels`: 16 bits in 4 channels, and metadata."""
    return 8 * max_pixels + (128 << 20)


def shares(workers: int, max_pixels: int, available: int | None) -> tuple[int, int]:
    """Compute the bytes that each of `workers` may take at any time, and those that one may take in its turn.

    Of the `available` bytes (None for no limit), a quarter is for all shares,
    a half for the turn, and the rest for the network.
    """
    most = needed(max_pixels)
    if available is None:
        return most, most
    whole = min(most, max(LEAST, available // 2))
    return min(whole, max(LEAST, available // 4 // workers)), whole


class Allowance:
    """The memory that this process may take beyond what it has when `begin` is called."""

    def __init__(self, share: int, whole: int, lock: int, *, enough: bool) -> None:
        """Allow `share` bytes at any time and `whole` in a turn, which may be `enough` for any image within limits.

        `lock` is a file that the processes have in common.
        """
        self.whole, self.enough = whole, enough
        self._share, self._lock = share, lock
        self._taken = 0

    @property
    def more(self) -> bool:
        """Whether a turn gives more than the share."""
        return self.whole > self._share

    def begin(self) -> None:
        """Enforce the share; on Linux only: other systems do not say what a process has taken."""
        if sys.platform == "linux":
            with open("/proc/self/statm", "rb") as file:
                self._taken = int(file.read().split()[0]) * resource.getpagesize()
            self._limit(self._share)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, and raise the limit within the block."""
        with suppress(OSError):  # no locks in this sandbox: several may have their turn at once
            fcntl.lockf(self._lock, fcntl.LOCK_EX, 1)
        self._limit(self.whole)
        try:
            yield
        finally:
            self._limit(self._share)
            with suppress(OSError):
                fcntl.lockf(self._lock, fcntl.LOCK_UN, 1)

    def _limit(self, beyond: int) -> None:
        if self._taken:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            most = self._taken + beyond
            if hard != resource.RLIM_INFINITY and most > hard:
                most, self.enough = hard, False
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
