"""Decode pictures in processes beside this one.

In: references, each with a slot of a shared buffer. Out: a future for each,
of the reference with its file's facts once the crop lies in the slot, or of
its failure. A process that crashes or hangs costs its picture, nothing else.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import Pipe
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rn50feat.engines import Failure
from rn50feat.errors import RN50FeatError
from rn50feat.provenance import Preprocessing
from rn50feat.sources import Reference

PICTURE_SECONDS = 60.0  # of a core; a 200-megapixel PNG takes about 10 s on a slow one
PATIENCE = 600.0  # seconds on the clock for a picture and the reading of its file


class DecoderPool:
    """Decoding processes that share `crops`, uint8 of shape (slots, crop, crop, 3)."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        slots: int,
        workers: int,
        max_pixels: int,
        seconds: float = PICTURE_SECONDS,
        patience: float = PATIENCE,
        thumbnails: bool = False,
    ) -> None:
        """Start `workers` processes.

        A picture may have `max_pixels`, and take `seconds` of a core, and
        `patience` seconds on the clock together with the reading of its file.
        With `thumbnails`, a slot takes the bytes of a JPEG of the whole
        picture, at most crop pixels in width and height, and then zeros.
        """
        shape = (slots, preprocessing.crop, preprocessing.crop, 3)
        self._buffer = _shared_file(int(np.prod(shape)))
        self.crops: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self._buffer, 0), np.uint8).reshape(shape)
        # Pillow takes 4 bytes a pixel and as many for each conversion; 512 MB for the file itself and the rest.
        limits = {"memory": 12 * max_pixels + (512 << 20), "max_pixels": max_pixels}
        self._arguments = {
            **limits,
            "seconds": seconds,
            "patience": patience,
            "preprocessing": asdict(preprocessing),
            "thumbnails": thumbnails,
        }
        self._workers: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._alive: set[_Worker] = set()
        self._closing = False
        for _ in range(workers):
            self._workers.put(self._start())
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decoder")
        self.workers = workers
        self.busy = 0.0  # seconds, added up over all processes

    def decode(self, slot: int, reference: Reference) -> Future[Reference | Failure]:
        """Decode a picture into ``crops[slot]``; the result is its reference, or its failure."""
        return self._threads.submit(self._decode, slot, reference)

    def _decode(self, slot: int, reference: Reference) -> Reference | Failure:
        worker = self._workers.get()
        begun = time.monotonic()
        try:
            return worker.decode(slot, reference)
        except _WorkerDied as death:
            self._alive.discard(worker)
            if not self._closing:
                worker = self._start()
            return Failure(reference, str(death), death.cause)
        finally:
            self.busy += time.monotonic() - begun  # a lost update, by two threads at once, is a loss of milliseconds
            self._workers.put(worker)

    def _start(self) -> _Worker:
        worker = _Worker(self._buffer, self._arguments)
        self._alive.add(worker)
        return worker

    def close(self) -> None:
        """Stop the processes at once; the pictures that they are at are forgotten."""
        self._closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._alive):
            worker.stop()
        self._threads.shutdown()
        os.close(self._buffer)


class _WorkerDied(Exception):
    """A process ended over a picture; the message is the ledger's reason."""

    def __init__(self, code: int) -> None:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        known = {
            -signal.SIGPROF: "took longer to decode than one picture may",
            -signal.SIGALRM: "could not be read in time: is its disk or network there?",
        }
        super().__init__(known.get(code, f"ended its decoding process ({how})"))
        # Sent by a slow disk, a person, systemd, the kernel when memory ran out: not by the picture.
        outside = code in (-signal.SIGALRM, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP, -signal.SIGINT)
        self.cause: Literal["content", "access"] = "access" if outside else "content"


class _Worker:
    """One decoding process."""

    def __init__(self, buffer: int, arguments: dict[str, Any]) -> None:
        self._channel, theirs = Pipe()
        # The parent's own module path, and no other: a file json.py in the
        # working folder must not become part of the program.
        program = f"import sys; sys.path[:] = {sys.path!r}; from rn50feat.engines.worker import main; main"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{program}(channel={theirs.fileno()}, buffer={buffer}, **{arguments!r})"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), buffer),
                start_new_session=True,  # Ctrl-C and the like reach a whole group; the parent decides what to stop
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._ready = False

    def decode(self, slot: int, reference: Reference) -> Reference | Failure:
        self._wait_until_ready()
        try:
            request = (slot, reference.location, reference.size, reference.mtime_ns)
            self._channel.send_bytes(json.dumps(request).encode())
            answer = json.loads(self._channel.recv_bytes())
        except (EOFError, OSError):
            raise _WorkerDied(self._process.wait()) from None
        reference = replace(
            reference, size=answer["size"], mtime_ns=answer["mtime_ns"], digest=bytes.fromhex(answer["digest"])
        )
        return Failure(reference, answer["reason"], answer["cause"]) if answer["reason"] else reference

    def _wait_until_ready(self) -> None:
        try:
            self._ready = self._ready or bool(self._channel.recv_bytes())
        except (EOFError, OSError) as error:
            raise RN50FeatError(
                f"a decoding process could not start (exit code {self._process.wait()}): see what it printed above"
            ) from error

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _shared_file(size: int) -> int:
    """Return a descriptor of `size` zero bytes in memory, for processes that inherit it."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("rn50feat")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle
