"""The program with a slow fake engine, in a process of its own: ``python slow.py SECONDS ARGUMENT...``.

Says so on stdout when a batch begins. With ``-`` for SECONDS a batch ends with the next line on stdin, or when that
is closed, so that a test can do what it has to while the batch goes on, on the slowest machine.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from fake import FakeEngine, FakeStart

from rn50feat.cli.main import main
from rn50feat.engines import local
from rn50feat.engines.contract import Batch
from rn50feat.sources.reference import Reference


def slow(folder: Path, seconds: float | Literal["-"], *arguments: str) -> subprocess.Popen[str]:
    """Start to extract `pictures` in a folder to `out.h5`, two pictures a batch."""
    return subprocess.Popen(
        [sys.executable, __file__, str(seconds), "extract", "pictures", "out.h5", *arguments],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        env={**os.environ, "RN50FEAT_WEIGHTS": "random", "RN50FEAT_BATCH_SIZE": "2"},
    )  # fmt: skip


def stopped(process: subprocess.Popen[str], number: int) -> tuple[str, str]:
    """Send a signal while a batch begins, end that batch, and return the rest of what is printed, and the errors."""
    process.stdout.readline()
    process.send_signal(number)
    errors = ""
    while "stopping" not in errors:
        line = process.stderr.readline()
        assert line, f"it has ended: {errors}"
        errors += line
    process.stdin.close()
    return process.stdout.read(), errors + process.stderr.read()


class SlowEngine(FakeEngine):
    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        for batch in super().embed(references):
            os.write(1, b"batch\n")  # with --json, what is printed meanwhile goes to stderr
            if sys.argv[1] == "-":
                while not select.select([sys.stdin], [], [], 0.1)[0]:
                    pass  # a signal just before a read that blocks would wait for its end
                sys.stdin.readline()
            else:
                time.sleep(float(sys.argv[1]))
            yield batch


class SlowStart(FakeStart):
    def __call__(self, weights, provenance, options):  # type: ignore[no-untyped-def]
        if seconds := os.environ.get("START_SECONDS"):
            os.write(1, b"start\n")
            time.sleep(float(seconds))
        return SlowEngine(provenance.preprocessing, options.batch_size or 32)


if __name__ == "__main__":
    local.start = SlowStart()  # type: ignore[assignment]
    main(sys.argv[2:], prog_name="rn50feat")
