"""Decode on the cores, and on the GPU beside them once the network has waited for the cores.

In: what a decoder takes, and for each batch whether the network had run dry
before it was decoded. Out: what a decoder gives. A GPU that decodes costs its
network some of its time, and a run some seconds to start it: it is asked for
help only where the cores prove too slow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock, Thread

from rn50feat.engines.gpu_decoder import GpuDecoder
from rn50feat.engines.pool import DecoderPool, Outcome
from rn50feat.errors import RN50FeatError
from rn50feat.places.sources import Reference

logger = logging.getLogger(__name__)

TRIAL = 16  # batches that tell whether the cores decode fast enough


class HelpedDecoder:
    """A pool, and a GPU that may come to help; a `Decoder`."""

    def __init__(self, pool: DecoderPool, start: Callable[[], GpuDecoder]) -> None:
        """Decode with `pool`; `start` starts the help."""
        self.crops = pool.crops
        self._pool, self._start = pool, start
        self._gpu: GpuDecoder | None = None
        self._batches = self._starved = 0
        self._closing, self._closed = Lock(), False

    @property
    def seconds(self) -> float:
        """The seconds for which the processes on the cores, on average, were busy."""
        return self._pool.seconds

    def decode(self, first: int, references: Sequence[Reference]) -> list[Future[list[Outcome]]]:
        """Decode pictures into the slots from `first` on."""
        return (self._gpu or self._pool).decode(first, references)

    def watch(self, *, starved: bool) -> None:
        """Take note of a batch; get help when the network had run dry before most of the first ones."""
        self._batches += 1
        self._starved += starved
        if self._batches == TRIAL and self._starved > TRIAL // 2:
            Thread(target=self._get_help, daemon=True).start()

    def _get_help(self) -> None:
        """Start the help; the pool goes on alone until it is ready, and for good when it cannot start."""
        gpu = self._start()
        try:
            gpu.wait_until_ready()
        except RN50FeatError as error:
            logger.info("the GPU does not decode: %s", error)
            gpu.stop()
            return
        with self._closing:
            if self._closed:
                gpu.stop()
            else:
                self._gpu = gpu

    def close(self) -> None:
        """Stop all processes at once."""
        with self._closing:
            self._closed = True
        if self._gpu:
            self._gpu.stop()
        self._pool.close()
