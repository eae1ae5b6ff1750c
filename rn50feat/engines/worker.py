"""A process that decodes pictures for `pool`.

In: requests of a few files each, as JSON over a socket. Out: the crops, or the
thumbnails, in the slots of a shared buffer that the request names, and the
facts of each file, or the reason of its failure, as JSON. A process of its
own, because a decoder may crash, hang or swallow memory on a hostile file.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.engines.allowance import Allowance, gigabytes, largest_file, needed
from rn50feat.errors import DamagedError, ImageError, SourceError, TooLargeError, VanishedError
from rn50feat.images import decoding
from rn50feat.images.provenance import Preprocessing
from rn50feat.sources import sources
from rn50feat.sources.sources import Reference

# The network's threads wait for each other, and so for whoever has one of their cores; decoding, a batch ahead, takes
# the gaps: 49.4 against 47.7 images/s with OpenVINO on 2 cores, 42.8 against 41.5 with torch.
NICENESS = 5
# Sent to all processes of a terminal, a service or a job, to stop it or to announce that.
LEFT_TO_PARENT = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)


def main(
    *,
    channel: int,
    buffer: int,
    share: int,
    whole: int,
    max_pixels: int,
    seconds: float,
    patience: float,
    preprocessing: dict[str, Any],
    thumbnails: bool,
) -> None:
    """Serve requests until the other end of the socket `channel` closes.

    `buffer` is a file of crops, or with `thumbnails` of JPEGs; `share` and
    `whole` are bytes, as in `Allowance`. An image may take `seconds` of this
    process's time before SIGPROF ends it, and with its reading `patience` on
    the clock before SIGALRM does: a disk that hangs, or a machine that
    sleeps, is not the image's fault.
    """
    leave_signals()
    os.nice(NICENESS)
    parent = Parent(channel)
    settings = Preprocessing(**preprocessing)
    fill = partial(_thumbnail if thumbnails else _crop, settings=settings, max_pixels=max_pixels)
    timed = partial(_timed, seconds, patience)
    decoding.lift_pillow_limit()
    silence_libraries()
    parent.send("ready")
    crops, allowance = None, Allowance(share, whole, buffer, enough=whole >= needed(max_pixels))
    while True:
        requests = parent.receive()
        if crops is None:  # the parent makes room in the buffer while this process starts
            crops = np.frombuffer(mmap.mmap(buffer, 0), settings.crop_dtype)
            crops = crops.reshape(-1, settings.crop, settings.crop, 3)
            allowance.begin()
        answers = [
            _answered(partial(_decode, reference, partial(fill, crops[slot]), max_pixels), allowance, timed)
            for slot, reference in map(from_request, requests)
        ]
        parent.send(answers)


class Parent:
    """The process that sends the requests, as JSON over a socket; when it has ended, this one ends without a word."""

    def __init__(self, channel: int) -> None:
        self._connection = Connection(channel)

    def receive(self) -> Any:
        """Return the next request."""
        try:
            return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            sys.exit()

    def send(self, message: object) -> None:
        """Send that this process is ready, or an answer."""
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:
            sys.exit()


def _answered(
    attempt: Callable[[], dict[str, Any]], allowance: Allowance, timed: Callable[[], AbstractContextManager[None]]
) -> dict[str, Any]:
    """Return the answer of an attempt, or of a second one, with more memory, where the first may have lacked some.

    Decoders in C say all sorts of things when they get no memory, so that any failure may be of that kind.
    """
    with timed():
        said = attempt()
    if said["reason"] and said["cause"] in ("content", "memory") and allowance.more:
        with allowance.turn(), timed():
            said = attempt()
    if said["cause"] == "memory":  # with more memory here, another run may decode it
        said["cause"] = "content" if allowance.enough else "access"
        remedy = ": raise --max-megapixels" if allowance.enough else ""
        most = f"{gigabytes(allowance.whole)} GB"
        said["reason"] = f"needs more memory to decode than one image may take ({most}){remedy}"
    return said


@contextmanager
def _timed(seconds: float, patience: float) -> Iterator[None]:
    """End this process when the block takes longer."""
    signal.setitimer(signal.ITIMER_REAL, patience)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _crop(slot: NDArray[Any], data: bytes, suffix: str, *, settings: Preprocessing, max_pixels: int) -> str:
    decoded = decoding.decode(data, settings, suffix=suffix, max_pixels=max_pixels)
    slot[:] = decoded.crop
    return decoded.damage


def _thumbnail(slot: NDArray[np.uint8], data: bytes, suffix: str, *, settings: Preprocessing, max_pixels: int) -> str:
    jpeg = decoding.thumbnail(data, settings.crop, suffix=suffix, max_pixels=max_pixels)
    slot.reshape(-1)[:] = np.frombuffer(jpeg.ljust(slot.size, b"\0"), np.uint8)
    return ""


def _decode(reference: Reference, fill: Callable[[bytes, str], str], max_pixels: int) -> dict[str, Any]:
    reason, cause = None, "content"
    try:
        reference, data = sources.read(reference, largest_file(max_pixels))
        reference = replace(reference, damage=fill(data, os.path.splitext(reference.location)[1]))
    except (ImageError, DamagedError, TooLargeError) as error:
        reason = str(error)
    except VanishedError as error:
        reason, cause = str(error), "vanished"
    except SourceError as error:
        reason, cause = str(error), "access"
    except MemoryError:
        reason, cause = "no memory", "memory"
    return answer(reference, reason, cause)


def as_request(slot: int, reference: Reference) -> list[Any]:
    """Return what the parent sends of a file that is to be decoded into `slot`."""
    return [slot, reference.location, reference.size, reference.mtime_ns, reference.offset]


def from_request(request: Sequence[Any]) -> tuple[int, Reference]:
    """Return the slot and the file of what `as_request` made."""
    slot, location, size, mtime_ns, offset = request
    return slot, Reference(location, size, mtime_ns, offset=offset)


def answer(reference: Reference, reason: str | None = None, cause: str = "content") -> dict[str, Any]:
    """Return what the parent is told of a file: its facts, and the reason and cause of its failure, if it is one."""
    facts: dict[str, Any] = {"size": reference.size, "mtime_ns": reference.mtime_ns, "digest": reference.digest.hex()}
    facts["damage"] = reference.damage
    return {**facts, "reason": reason, "cause": cause}


def leave_signals() -> None:
    """Leave it to the parent what a signal to all of them means: systemd sends SIGTERM to a whole service."""
    for number in LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)


def silence_libraries() -> None:
    """Keep what libtiff and others tell of a broken file off the terminal; a traceback still gets there."""
    logging.disable()
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
