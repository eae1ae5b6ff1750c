"""Decode images in processes of their own.

In: references, and slots of a shared buffer. Out: futures of the references
with their files' facts once the crops are in the slots, or of their failures.
A process that crashes or hangs costs its image, nothing else.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import Pipe
from typing import Any, Literal

import numpy as np

from rn50feat.durable import limits
from rn50feat.engines.allowance import seconds as seconds_for
from rn50feat.engines.allowance import shares
from rn50feat.engines.contract import Failure
from rn50feat.engines.worker import LEFT_TO_PARENT, as_request
from rn50feat.errors import RN50FeatError
from rn50feat.images.provenance import Preprocessing
from rn50feat.sources.reference import Reference

PATIENCE = 600.0  # seconds on the clock to read and decode an image
PORTION = 16  # images a request: this process takes 0.085 ms of a core for each, 0.13 with 8 (tests/benchmarks/feed.py)

Outcome = Reference | Failure


class DecoderPool:
    """Decoding processes that share `crops`, uint8 or float32 of shape (slots, crop, crop, 3)."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        workers: int,
        max_pixels: int,
        slots: int = 0,
        seconds: float | None = None,
        patience: float = PATIENCE,
        content: Literal["crop", "thumbnail", "view"] = "crop",
    ) -> None:
        """Start `workers` processes, with room for `slots` crops, or as many as `reserve` makes later.

        An image may have `max_pixels`, and take `seconds` of a core (by
        default, what `max_pixels` may take) and `patience` seconds on the
        clock, reading included. A slot takes a crop, or the bytes of a JPEG
        of the whole image, at most crop pixels wide and high, or those of a
        packed `SmallCopy`, at most crop - 1 pixels; these are padded with zeros.
        """
        self._shape = (preprocessing.crop, preprocessing.crop, 3)
        self._dtype = np.dtype(preprocessing.crop_dtype)
        self.buffer = _shared_file()
        if slots:
            self.reserve(slots)
        share, whole = shares(workers, max_pixels, limits.memory())
        self._arguments = {
            "share": share,
            "whole": whole,
            "max_pixels": max_pixels,
            "seconds": seconds_for(max_pixels) if seconds is None else seconds,
            "patience": patience,
            "preprocessing": asdict(preprocessing),
            "content": content,
        }
        self._workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._alive: set[Worker] = set()
        self._closing = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decoder")
        self.workers = workers
        self._busy = 0.0  # seconds, added up over all processes
        limits.raise_open_files()
        try:
            with limits.explained():
                for _ in range(workers):
                    self._workers.put(self._start())
        except BaseException:
            self.close()
            raise

    def reserve(self, slots: int) -> None:
        """Make room for `slots` crops, before the first call of `decode`."""
        shape = (slots, *self._shape)
        with limits.explained():
            os.ftruncate(self.buffer, math.prod(shape) * self._dtype.itemsize)
        self.crops = np.frombuffer(mmap.mmap(self.buffer, 0), self._dtype).reshape(shape)

    @property
    def seconds(self) -> float:
        """The seconds for which the processes, on average, were busy."""
        return self._busy / self.workers

    def decode(self, first: int, references: Sequence[Reference]) -> list[Future[list[Outcome]]]:
        """Decode images into ``crops[first]`` and on; the results, joined, are in the order of the references."""
        size = max(1, min(PORTION, len(references) // self.workers))
        return [
            self._threads.submit(self._decode, first + i, references[i : i + size])
            for i in range(0, len(references), size)
        ]

    def _decode(self, first: int, portion: Sequence[Reference]) -> list[Outcome]:
        worker = self._workers.get()
        begun = time.monotonic()
        try:
            return worker.decode(first, portion)
        except WorkerDied as death:
            self._alive.discard(worker)
            if not self._closing:
                worker = self._start()
            if len(portion) == 1:
                return [Failure(portion[0], str(death), death.cause)]
        finally:
            self._busy += time.monotonic() - begun  # a lost update, by two threads at once, is a loss of milliseconds
            self._workers.put(worker)
        # Each alone, to find the one that did it.
        return [self._decode(first + i, [reference])[0] for i, reference in enumerate(portion)]

    def _start(self) -> Worker:
        worker = Worker(self.buffer, self._arguments)
        self._alive.add(worker)
        return worker

    def close(self) -> None:
        """Stop the processes at once, in the middle of an image too."""
        self._closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._alive):
            worker.stop()
        self._threads.shutdown()
        os.close(self.buffer)


class WorkerDied(Exception):
    """Report that a process ended over an image; the message is the ledger's reason."""

    def __init__(self, code: int, seconds: float) -> None:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        known = {
            -signal.SIGPROF: f"took longer to decode than one image may ({seconds:.0f} s): raise --max-megapixels",
            -signal.SIGALRM: "could not be read in time: is its disk or network there?",
        }
        super().__init__(known.get(code, f"ended its decoding process ({how})"))
        # Not the image's fault: a slow disk, a person, systemd, a batch system, or the kernel when memory ran out.
        outside = code in (-signal.SIGALRM, -signal.SIGKILL, *(-number for number in LEFT_TO_PARENT))
        self.cause: Literal["content", "access"] = "access" if outside else "content"


class Worker:
    """One decoding process, which runs `worker.main`."""

    def __init__(self, buffer: int, arguments: dict[str, Any]) -> None:
        self._channel, theirs = Pipe()
        self._seconds = arguments["seconds"]
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

    def decode(self, first: int, portion: Sequence[Reference]) -> list[Outcome]:
        """Decode images into the slots from `first` on; raise `WorkerDied` if one of them ends the process.

        Raises `RN50FeatError` if the process cannot start.
        """
        requests = [as_request(first + i, reference) for i, reference in enumerate(portion)]
        try:
            self._ready = self._ready or bool(self._channel.recv_bytes())
            self._channel.send_bytes(json.dumps(requests).encode())
            answers = json.loads(self._channel.recv_bytes())
        except (EOFError, OSError) as error:
            code = self._process.wait()
            if self._ready:
                raise WorkerDied(code, self._seconds) from None
            raise RN50FeatError(
                f"a decoding process could not start (exit code {code}): see what it printed above"
            ) from error
        return [outcome(reference, answer) for reference, answer in zip(portion, answers)]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def outcome(reference: Reference, answer: dict[str, Any]) -> Outcome:
    """Read a process's answer about `reference`."""
    reference = replace(
        reference,
        size=answer["size"],
        mtime_ns=answer["mtime_ns"],
        digest=bytes.fromhex(answer["digest"]),
        damage=answer["damage"],
    )
    return Failure(reference, answer["reason"], answer["cause"]) if answer["reason"] else reference


def _shared_file() -> int:
    """Open an empty file in memory, for processes that inherit its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rn50feat")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
