"""Read a Keras file in a process of its own, which may crash or hang at no other cost.

In: a file. Out: torchvision's tensors. The checks in `hdf5` come too late for
what HDF5 itself trips over: of 6,000 files with a few bytes of their metadata
changed, two ended the process that read them with SIGSEGV, and one kept it
busy for ever (HDF5 2.0). So a process with a limit of time and memory, and
nothing to lose, reads them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from rn50feat.errors import WeightsError
from rn50feat.model.weight_files.translation import Translated

SECONDS = 120.0  # a file of 100 MB takes 0.3 s from a warm disk
_MEMORY = 4 << 30  # bytes beyond the file itself; a ResNet50 takes 0.5 GiB


def read(path: Path) -> Translated:
    """Return the tensors of a Keras file; raise `WeightsError` when they are not those of a ResNet50 or damaged."""
    # The parent's own module path, and no other, as for decoding processes.
    program = f"import sys; sys.path[:] = {sys.path!r}; from rn50feat.model.weight_files.apart import main; main()"
    try:
        child = subprocess.run(
            [sys.executable, "-c", program, path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise _damaged(path, f"reading it took more than {SECONDS:.0f} s") from error
    if child.returncode == -signal.SIGKILL:
        raise WeightsError(
            f"{path} was not read: the process that read it was killed, perhaps for lack of memory: run again"
        )
    if child.returncode < 0:
        raise _damaged(path, f"HDF5 crashed with {signal.Signals(-child.returncode).name}")
    if child.returncode:
        raise RuntimeError(f"reading {path} failed:\n{child.stderr.decode('utf-8', 'replace')}")
    return _received(child.stdout)


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path} is a damaged HDF5 file ({reason}): download it again")


def _received(answer: bytes) -> Translated:
    line, _, values = answer.partition(b"\n")
    header = json.loads(line)
    if "error" in header:
        raise WeightsError(header["error"])
    flat, start, tensors = np.frombuffer(bytearray(values), np.float32), 0, {}
    for name, shape in header["shapes"].items():
        end = start + int(np.prod(shape))
        tensors[name], start = flat[start:end].reshape(shape), end
    return Translated(header["variant"], tensors)


def main() -> None:
    """Write the tensors of the file that the first argument names to stdout: a line of JSON, then their values."""
    from rn50feat.model.weight_files import keras

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent decides what to stop
        signal.signal(number, signal.SIG_IGN)
    path = Path(sys.argv[1])
    if sys.platform == "linux":  # elsewhere the limit is not enforced
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = path.stat().st_size + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    try:
        found = keras.read(path)
    except WeightsError as error:
        sys.stdout.buffer.write(json.dumps({"error": str(error)}).encode())
        return
    shapes = {name: value.shape for name, value in found.tensors.items()}
    sys.stdout.buffer.write(json.dumps({"variant": found.variant, "shapes": shapes}).encode() + b"\n")
    for value in found.tensors.values():
        sys.stdout.buffer.write(value.data)
