"""The command line with a slow fake engine: ``python slow.py SECONDS ARGUMENT...``.

Says so on stdout when a batch begins. With ``-`` for SECONDS a batch ends with the next line on stdin, or when that
is closed, so that a test can do what it has to while the batch goes on, on the slowest machine.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from fake import FakeEngine, FakeStart

from rn50feat.engines import local
from rn50feat.engines.contract import Batch
from rn50feat.sources.sources import Reference

SECONDS = sys.argv[1]


class SlowEngine(FakeEngine):
    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        for batch in super().embed(references):
            print("batch", flush=True)
            if SECONDS == "-":
                sys.stdin.readline()
            else:
                time.sleep(float(SECONDS))
            yield batch


class SlowStart(FakeStart):
    def __call__(self, weights, provenance, options):  # type: ignore[no-untyped-def]
        if seconds := os.environ.get("START_SECONDS"):
            print("start", flush=True)
            time.sleep(float(seconds))
        return SlowEngine(provenance.preprocessing, options.batch_size or 32)


local.start = SlowStart()  # type: ignore[assignment]

from rn50feat.cli.main import main  # noqa: E402

main(sys.argv[2:], prog_name="rn50feat")
