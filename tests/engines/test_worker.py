"""worker: decoding processes end with the run that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def test_decoding_processes_of_a_killed_run_end_without_a_word(pictures: Path) -> None:
    program = (
        "import time\n"
        "from rn50feat.engines.pool import DecoderPool\n"
        "from rn50feat.images.provenance import Preprocessing\n"
        "from rn50feat.sources.reference import Reference\n"
        "pool = DecoderPool(Preprocessing(), slots=8, workers=2, max_pixels=10**7)\n"
        f"pool.decode(0, [Reference({str(pictures / 'red.png')!r}, -1, -1)])[0].result()\n"
        "print(*(worker._process.pid for worker in pool._alive), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()  # ends when the workers do, which have its standard error, too
    assert told == b""
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{worker}/exe") for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.01)
