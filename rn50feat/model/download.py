"""Fetch one published file, as a whole or not at all.

In: its address, how its SHA-256 begins, and its place. Out: the file there,
or a `WeightsError` that says what to do. A server that does not answer, or
hardly, ends it after `PATIENCE` seconds.
"""

from __future__ import annotations

import hashlib
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rn50feat import __version__
from rn50feat.durable import atomic, waiting
from rn50feat.errors import WeightsError

PATIENCE = 30.0  # seconds for each block: 2 kB/s
_BLOCK = 1 << 16

Told = Callable[[int, int], object]  # how many bytes there are, of how many (0 for unknown)


class _CutError(Exception):
    """The bytes do not come, or are not those that were published."""


def download(url: str, sha256: str, path: Path, *, stop: Callable[[], str | None], told: Told) -> None:
    """Fetch the file at `url` to `path`; raise `waiting.Stopped` soon after `stop` returns a reason."""
    moved = [time.monotonic()]
    late = f"nothing came for {PATIENCE:.0f} s"

    def note(done: int, total: int) -> None:
        moved[0] = time.monotonic()
        told(done, total)

    def over() -> str | None:
        return stop() or (late if time.monotonic() - moved[0] > PATIENCE else None)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.attend(lambda: _fetch(url, sha256, path, note, over), over)
    except waiting.Stopped as stopped:
        if stopped.reason != late:
            raise
        raise _failed(url, path, late) from stopped
    except _CutError as error:
        raise _failed(url, path, str(error)) from error
    except (OSError, WeightsError) as error:
        cause = error.__cause__ or error
        raise WeightsError(
            f"{path} cannot be written ({getattr(cause, 'strerror', cause)}): set TORCH_HOME to a folder with room that"
            " you may write to, name other weights, or try things out with --weights random"
        ) from error


def _failed(url: str, path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{url} cannot be downloaded ({reason}): fetch it by hand and put it at {path}, name other weights,"
        " or try things out with --weights random"
    )


def _fetch(url: str, sha256: str, path: Path, note: Told, over: Callable[[], str | None]) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": f"rn50feat/{__version__}"})
    with _network():
        answer = urllib.request.urlopen(request, timeout=2 * PATIENCE)
    total, done, digest = int(answer.headers.get("Content-Length") or 0), 0, hashlib.sha256()
    with answer, atomic.written([path], kind=WeightsError) as (out,):
        while block := _block(answer):
            if over():
                raise _CutError("stopped")
            out.write(block)
            digest.update(block)
            note(done := done + len(block), total)
        if done < total:
            raise _CutError(f"it was cut off after {done:,} of {total:,} bytes")
        if not digest.hexdigest().startswith(sha256):
            raise _CutError(f"its SHA-256 begins with {digest.hexdigest()[:8]}, not {sha256}")


def _block(answer: Any) -> bytes:
    with _network():
        return bytes(answer.read(_BLOCK))


@contextmanager
def _network() -> Iterator[None]:
    """Tell what goes wrong on the way here from what goes wrong with the disk."""
    try:
        yield
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise _CutError(str(getattr(error, "reason", None) or error) or type(error).__name__) from error
