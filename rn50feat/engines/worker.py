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
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat import images
from rn50feat.errors import DamagedError, ImageError, SourceError, VanishedError
from rn50feat.places import sources
from rn50feat.places.sources import Reference
from rn50feat.provenance import Preprocessing

# The network's threads wait for each other, and so for whoever has one of their cores; decoding, a batch ahead, takes
# the gaps: 49.4 against 47.7 images/s with OpenVINO on 2 cores, 42.8 against 41.5 with torch.
NICENESS = 5


def main(
    *,
    channel: int,
    buffer: int,
    memory: int,
    max_pixels: int,
    seconds: float,
    patience: float,
    preprocessing: dict[str, Any],
    thumbnails: bool,
) -> None:
    """Serve requests until the other end of the socket `channel` closes.

    `buffer` is a file of crops, or with `thumbnails` of JPEGs, `memory` the
    number of bytes that this process may take beyond what it has at the start.
    A picture may take `seconds` of this process's time before SIGPROF ends it,
    and with its reading `patience` on the clock before SIGALRM does: a disk
    that hangs, or a machine that sleeps, is not the picture's fault.
    """
    leave_signals()
    os.nice(NICENESS)
    connection = Connection(channel)
    settings = Preprocessing(**preprocessing)
    fill = partial(_thumbnail if thumbnails else _crop, settings=settings, max_pixels=max_pixels)
    crops = np.frombuffer(mmap.mmap(buffer, 0), settings.crop_dtype).reshape(-1, settings.crop, settings.crop, 3)
    images.lift_pillow_limit()
    silence_libraries()
    _limit_memory(memory)
    connection.send_bytes(b"ready")
    while True:
        try:
            requests = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            return
        answers = []
        for slot, reference in map(from_request, requests):
            signal.setitimer(signal.ITIMER_REAL, patience)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            answers.append(_decode(reference, partial(fill, crops[slot])))
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(answers).encode())


def _crop(slot: NDArray[Any], data: bytes, suffix: str, *, settings: Preprocessing, max_pixels: int) -> None:
    slot[:] = images.decode(data, settings, suffix=suffix, max_pixels=max_pixels)


def _thumbnail(slot: NDArray[np.uint8], data: bytes, suffix: str, *, settings: Preprocessing, max_pixels: int) -> None:
    jpeg = images.thumbnail(data, settings.crop, suffix=suffix, max_pixels=max_pixels)
    slot.reshape(-1)[:] = np.frombuffer(jpeg.ljust(slot.size, b"\0"), np.uint8)


def _decode(reference: Reference, fill: Callable[[bytes, str], None]) -> dict[str, Any]:
    reason, cause = None, "content"
    try:
        reference, data = sources.read(reference)
        fill(data, os.path.splitext(reference.location)[1])
    except (ImageError, DamagedError) as error:
        reason = str(error)
    except VanishedError as error:
        reason, cause = str(error), "vanished"
    except SourceError as error:
        reason, cause = str(error), "access"
    except MemoryError:
        reason = "is larger than the memory that one picture is allowed"
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
    facts = {"size": reference.size, "mtime_ns": reference.mtime_ns, "digest": reference.digest.hex()}
    return {**facts, "reason": reason, "cause": cause}


def leave_signals() -> None:
    """Leave it to the parent what a signal to all of them means: systemd sends SIGTERM to a whole service."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def silence_libraries() -> None:
    """Keep what libtiff and others tell of a broken file off the terminal; a traceback still gets there."""
    logging.disable()
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _limit_memory(beyond: int) -> None:
    if sys.platform != "linux":  # elsewhere the limit is not enforced
        return
    with open("/proc/self/statm", "rb") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + beyond, resource.getrlimit(resource.RLIMIT_AS)[1]))
