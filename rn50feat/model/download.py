"""Download a published file atomically.

In: its URL, the first digits of its SHA-256, and the path to put it at. Out:
the complete file, or a `WeightsError` that says what to do. A server that
sends nothing for `PATIENCE` seconds ends the download.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rn50feat import __version__
from rn50feat.durable import atomic, waiting
from rn50feat.errors import WeightsError

PATIENCE = 30.0  # seconds for each block: 2 kB/s
_BLOCK = 1 << 16

OnDownload = Callable[[int, int], object]  # gets (bytes done, bytes in total or 0 if unknown)


class _DownloadError(Exception):
    """The bytes do not arrive, or are not the published ones."""


def download(url: str, sha256: str, path: Path, *, stop: Callable[[], str | None], on_download: OnDownload) -> None:
    """Download `url` to `path`; raise `waiting.Stopped` soon after `stop` returns a reason, else `WeightsError`."""
    last_progress = [time.monotonic()]
    stalled = f"no data for {PATIENCE:.0f} s"

    def progress(done: int, total: int) -> None:
        last_progress[0] = time.monotonic()
        on_download(done, total)

    def over() -> str | None:
        return stop() or (stalled if time.monotonic() - last_progress[0] > PATIENCE else None)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.attend(lambda: _fetch(url, sha256, path, progress, over), over)
    except waiting.Stopped as stopped:
        if stopped.reason != stalled:
            raise
        raise _failed(url, path, stalled) from stopped
    except _DownloadError as error:
        raise _failed(url, path, str(error)) from error
    except (OSError, WeightsError) as error:
        cause = error.__cause__ or error
        raise WeightsError(
            f"{path} cannot be written ({getattr(cause, 'strerror', cause)}): set TORCH_HOME to a writable folder with"
            " enough space, use other weights, or try things out with --weights random"
        ) from error


def _failed(url: str, path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{url} cannot be downloaded ({reason}): download it yourself and put it at {path}, use other weights,"
        " or try things out with --weights random"
    )


def _fetch(url: str, sha256: str, path: Path, progress: OnDownload, over: Callable[[], str | None]) -> None:
    import urllib.request  # takes 30 ms, and downloads are rare

    request = urllib.request.Request(url, headers={"User-Agent": f"rn50feat/{__version__}"})
    with _network():
        answer = urllib.request.urlopen(request, timeout=2 * PATIENCE)
    total, done, digest = int(answer.headers.get("Content-Length") or 0), 0, hashlib.sha256()
    with answer, atomic.written([path], kind=WeightsError) as (out,):
        while block := _block(answer):
            if over():
                raise _DownloadError("stopped")
            out.write(block)
            digest.update(block)
            progress(done := done + len(block), total)
        if done < total:
            raise _DownloadError(f"the server sent only {done:,} of {total:,} bytes")
        if not digest.hexdigest().startswith(sha256):
            raise _DownloadError(f"its SHA-256 begins with {digest.hexdigest()[:8]}, not {sha256}")


def _block(answer: Any) -> bytes:
    with _network():
        return bytes(answer.read(_BLOCK))


@contextmanager
def _network() -> Iterator[None]:
    """Separate errors of the network from errors of the disk, which are OSErrors too."""
    from http.client import HTTPException

    try:
        yield
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise _DownloadError(str(getattr(error, "reason", None) or error) or type(error).__name__) from error
