"""A process that decodes pictures for `pool`.

In: requests of one file each, as JSON over a socket. Out: the crop in the
slot of a shared buffer that the request names, and the facts of the file, or
the reason of its failure, as JSON. A process of its own, because a decoder
may crash, hang or swallow memory on a hostile file.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat import images, sources
from rn50feat.errors import ImageError, SourceError, VanishedError
from rn50feat.provenance import Preprocessing
from rn50feat.sources import Reference


def main(
    *,
    channel: int,
    buffer: int,
    memory: int,
    max_pixels: int,
    seconds: float,
    patience: float,
    preprocessing: dict[str, Any],
) -> None:
    """Serve requests until the other end of the socket `channel` closes.

    `buffer` is a file of crops, `memory` the number of bytes that this
    process may take beyond what it has at the start. A picture may take
    `seconds` of this process's time before SIGPROF ends it, and with its
    reading `patience` on the clock before SIGALRM does: a disk that hangs, or
    a machine that sleeps, is not the picture's fault.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # systemd sends SIGTERM to all processes of a service
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(channel)
    settings = Preprocessing(**preprocessing)
    crops = np.frombuffer(mmap.mmap(buffer, 0), np.uint8).reshape(-1, settings.crop, settings.crop, 3)
    images.lift_pillow_limit()
    _silence_libraries()
    _limit_memory(memory)
    connection.send_bytes(b"ready")
    while True:
        try:
            slot, *file = json.loads(connection.recv_bytes())
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, patience)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = _decode(Reference(*file), crops[slot], settings, max_pixels)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(json.dumps(answer).encode())


def _decode(reference: Reference, crop: NDArray[np.uint8], settings: Preprocessing, max_pixels: int) -> dict[str, Any]:
    reason, cause = None, "content"
    try:
        reference, data = sources.read(reference)
        suffix = os.path.splitext(reference.location)[1]
        crop[:] = images.decode(data, settings, suffix=suffix, max_pixels=max_pixels)
    except ImageError as error:
        reason = str(error)
    except VanishedError as error:
        reason, cause = str(error), "vanished"
    except SourceError as error:
        reason, cause = str(error), "access"
    except MemoryError:
        reason = "is larger than the memory that one picture is allowed"
    facts = {"size": reference.size, "mtime_ns": reference.mtime_ns, "digest": reference.digest.hex()}
    return {**facts, "reason": reason, "cause": cause}


def _silence_libraries() -> None:
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
