"""Decode on the GPU what it can, and everything else on the cores.

In: references, and slots of a shared buffer, as for `pool`. Out: the same
futures. What a GPU does not decode (anything but a plain JPEG), refuses, or
crashes over is decoded by the pool, whose failures are those of the ledger.
"""

from __future__ import annotations

import logging
import queue
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from threading import Semaphore
from typing import Any

from rn50feat.engines.pool import DecoderPool, Outcome, Worker, WorkerDied, outcome
from rn50feat.engines.worker import as_request
from rn50feat.errors import RN50FeatError
from rn50feat.places.sources import Reference
from rn50feat.provenance import Preprocessing

logger = logging.getLogger(__name__)

SECONDS = 600.0  # for a request, with the reading of its files; afterwards the cores take it
PROCESSES = 2  # for each GPU: one reads files while the other decodes
QUEUE = 2  # requests for each process, when the cores share the work: one in hand, and one that waits
LOSSES = 3  # processes that may end before the rest of the run is left to the cores


class GpuDecoder:
    """Decoding processes on each of `devices`, and a pool for what they leave; a `Decoder`."""

    def __init__(
        self, pool: DecoderPool, devices: Sequence[str], preprocessing: Preprocessing, *, max_pixels: int, share: bool
    ) -> None:
        """Start the processes; with `share`, the pool takes the requests that find every GPU busy."""
        self.crops = pool.crops
        self._pool = pool
        self._arguments = {"max_pixels": max_pixels, "seconds": SECONDS, "preprocessing": asdict(preprocessing)}
        self._workers: queue.SimpleQueue[tuple[str, Worker]] = queue.SimpleQueue()
        self._alive: set[Worker] = set()
        self._losses, self._closing = 0, False
        places = list(devices) * PROCESSES
        for device in places:
            self._workers.put((device, self._start(device)))
        self._threads = ThreadPoolExecutor(len(places), thread_name_prefix="gpu decoder")
        self._room = Semaphore(QUEUE * len(places) if share else sys.maxsize)

    @property
    def seconds(self) -> float:
        """The seconds for which the processes on the cores, on average, were busy."""
        return self._pool.seconds

    def wait_until_ready(self) -> None:
        """Wait for the processes; raise `RN50FeatError` when one cannot start."""
        for worker in list(self._alive):
            worker.wait_until_ready()

    def decode(self, first: int, references: Sequence[Reference]) -> list[Future[list[Outcome]]]:
        """Decode pictures into the slots from `first` on, as `DecoderPool.decode` does."""
        if self._losses >= LOSSES or not self._room.acquire(blocking=False):
            return self._pool.decode(first, references)
        return [self._threads.submit(self._decode, first, references)]

    def _decode(self, first: int, references: Sequence[Reference]) -> list[Outcome]:
        request = [as_request(first + i, reference) for i, reference in enumerate(references)]
        try:
            answers = self._ask(request)
        finally:
            self._room.release()
        left = [None if answers[i] else self._pool.decode(first + i, [file])[0] for i, file in enumerate(references)]
        return [
            future.result()[0] if future else outcome(file, answer)
            for file, answer, future in zip(references, answers, left)
        ]

    def _ask(self, request: Sequence[object]) -> list[Any]:
        """Return a process's answer for each file that it has decoded, None for the others."""
        device, worker = self._workers.get()
        try:
            answers: list[Any] = worker.ask(request)
            return answers
        except (WorkerDied, RN50FeatError) as death:
            worker = self._after(death, device, worker)
            return [None] * len(request)
        finally:
            self._workers.put((device, worker))

    def _after(self, death: Exception, device: str, worker: Worker) -> Worker:
        """Return what serves `device` after its process has ended: another process, unless too many have."""
        self._alive.discard(worker)
        if self._closing:
            return worker
        self._losses += 1
        if self._losses < LOSSES:
            return self._start(device)
        logger.warning("pictures are decoded by the cores from now on: the process on %s %s", device, death)
        return worker

    def _start(self, device: str) -> Worker:
        worker = Worker(self._pool.buffer, {**self._arguments, "device": device}, module="gpu_worker")
        self._alive.add(worker)
        return worker

    def stop(self) -> None:
        """Stop the processes at once, and leave the pool as it is."""
        self._closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._alive):
            worker.stop()

    def close(self) -> None:
        """Stop everything at once, the pool too."""
        self.stop()
        self._pool.close()
        self._threads.shutdown()
