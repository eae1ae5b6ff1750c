"""Decode images for `pool`, in a process of its own.

In: requests of a few files each, as JSON over a socket. Out: the crops, or the
copies, in the slots of a shared buffer that the request names, and the
facts of each file, or the reason of its failure, as JSON. A decoder may
crash, hang or use up memory on a hostile file.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
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
from rn50feat.sources import contents
from rn50feat.sources.reference import Reference

# The network's threads wait for each other, and so for whoever has one of their cores; decoding, a batch ahead, takes
# the gaps: 49.4 against 47.7 images/s with OpenVINO on 2 cores, 42.8 against 41.5 with torch.
NICENESS = 5
# What stops all processes of a terminal, a service or a job, or announces that.
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
    content: str,
) -> None:
    """Serve requests until the other end of the socket `channel` closes.

    `buffer` is a file of crops, of JPEGs or of packed copies, by `content`; `share` and
    `whole` are bytes, as in `Allowance`. SIGPROF ends the process when an
    image takes more than `seconds` of its time; SIGALRM when reading and
    decoding take more than `patience` on the clock, which is not the image's
    fault: a disk may hang, or the machine sleep.
    """
    leave_signals()
    os.nice(NICENESS)
    parent = Connection(channel)
    settings = Preprocessing(**preprocessing)
    fill = partial(
        {"crop": _crop, "thumbnail": _thumbnail, "view": _view}[content], settings=settings, max_pixels=max_pixels
    )
    timed = partial(_timed, seconds, patience)
    decoding.lift_pillow_limit()
    silence_libraries()
    _send(parent, "ready")
    crops, allowance = None, Allowance(share, whole, buffer, enough=whole >= needed(max_pixels))
    for requests in _received(parent):
        if crops is None:  # the parent makes room in the buffer while this process starts
            crops = np.frombuffer(mmap.mmap(buffer, 0), settings.crop_dtype)
            crops = crops.reshape(-1, settings.crop, settings.crop, 3)
            allowance.begin()
        answers = [
            _answered(partial(_decode, reference, partial(fill, crops[slot]), max_pixels), allowance, timed)
            for slot, reference in map(from_request, requests)
        ]
        _send(parent, answers)


def _received(parent: Connection) -> Iterator[Any]:
    """Yield the parent's requests until it ends."""
    with suppress(EOFError, OSError):
        while True:
            yield json.loads(parent.recv_bytes())


def _send(parent: Connection, message: object) -> None:
    with suppress(OSError):  # the parent has ended, and `_received` does
        parent.send_bytes(json.dumps(message).encode())


def _answered(
    attempt: Callable[[], dict[str, Any]], allowance: Allowance, timed: Callable[[], AbstractContextManager[None]]
) -> dict[str, Any]:
    """Make an attempt, and a second one with more memory if the first may have lacked some; return the last answer.

    Decoders in C report a lack of memory in many ways, so any failure may be one.
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
    """End this process if the block takes longer."""
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


def _view(slot: NDArray[np.uint8], data: bytes, suffix: str, *, settings: Preprocessing, max_pixels: int) -> str:
    packed = decoding.view(data, settings.crop - 1, suffix=suffix, max_pixels=max_pixels).packed()
    slot.reshape(-1)[:] = np.frombuffer(packed.ljust(slot.size, b"\0"), np.uint8)
    return ""


def _decode(reference: Reference, fill: Callable[[bytes, str], str], max_pixels: int) -> dict[str, Any]:
    reason, cause = None, "content"
    try:
        reference, data = contents.read(reference, largest_file(max_pixels))
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
    """Write what the parent sends of a file that is to be decoded into `slot`."""
    return [slot, reference.location, reference.size, reference.mtime_ns, reference.offset]


def from_request(request: Sequence[Any]) -> tuple[int, Reference]:
    """Read the slot and the file from what `as_request` wrote."""
    slot, location, size, mtime_ns, offset = request
    return slot, Reference(location, size, mtime_ns, offset=offset)


def answer(reference: Reference, reason: str | None = None, cause: str = "content") -> dict[str, Any]:
    """Write what the parent is told of a file: its facts, and the reason and cause of its failure, if it is one."""
    facts: dict[str, Any] = {"size": reference.size, "mtime_ns": reference.mtime_ns, "digest": reference.digest.hex()}
    facts["damage"] = reference.damage
    return {**facts, "reason": reason, "cause": cause}


def leave_signals() -> None:
    """Ignore the signals that the parent handles for all: systemd sends SIGTERM to a whole service."""
    for number in LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)


def silence_libraries() -> None:
    """Keep what libtiff and others print about a broken file off the terminal; a traceback still gets there."""
    logging.disable()
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
