"""openvino: torch's rows whatever the batch, from a cache that is made anew when it is damaged."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from networks import OPENVINO, backend, cosines

from rn50feat.backends.contract import cpu_has_bf16
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Provenance
from rn50feat.model import network, weights


@pytest.mark.slow
@OPENVINO
@pytest.mark.parametrize(("precision", "nearness"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_openvino_gives_torchs_rows_whatever_the_batch(
    precision: str, nearness: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rn50feat.backends.openvino import OpenVinoBackend

    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    crops = np.random.default_rng(0).integers(0, 256, (11, 224, 224, 3), np.uint8)
    chosen = weights.find("random")
    provenance, loads = weights.provenance(chosen), []

    def load() -> network.Network:
        loads.append(1)
        return network.load(chosen)

    first = OpenVinoBackend(provenance, load, precision=precision)
    rows = first.features(crops)
    assert cosines(rows, backend("fp32").features(crops)).min() > nearness
    assert rows.dtype == np.float32
    for count in (1, 4):
        parts = [first.features(crops[i : i + count]) for i in range(0, len(crops), count)]
        np.testing.assert_array_equal(np.concatenate(parts), rows)
    # Known by its hash, it comes from the cache; a damaged cache is made again.
    known = replace(provenance, weights_sha256=first.weights_sha256)
    cached = OpenVinoBackend(known, load, precision=precision)
    np.testing.assert_array_equal(cached.features(crops), rows)
    assert len(loads) == 1
    few = OpenVinoBackend(known, load, precision=precision, few=True)
    np.testing.assert_allclose(few.features(crops), rows, atol=1e-2 * np.abs(rows).max())
    assert len(loads) == 1
    for blob in (tmp_path / "rn50feat").iterdir():
        blob.write_bytes(blob.read_bytes()[:1000])
    assert OpenVinoBackend(known, load, precision=precision).features(crops).shape == (11, 2048)
    assert len(loads) == 2
    OpenVinoBackend(
        replace(known, preprocessing=replace(known.preprocessing, std=(1.0, 1.0, 1.0))), load, precision="fp32"
    )
    assert len(loads) == 3  # another normalisation is another network


@pytest.mark.slow
@OPENVINO
def test_requests_have_the_fastest_size_but_for_a_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rn50feat.backends import openvino as module

    costs = {2: 3.0, 4: 2.0, 8: 1.0, 16: 2.0}
    measured = []

    def seconds(compiled: Any) -> float:
        measured.append(compiled.input(0).shape[0])
        return costs[measured[-1]]

    monkeypatch.setattr(module, "_seconds", seconds)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = weights.find("random")
    provenance, loaded = weights.provenance(chosen), network.load(chosen)

    def size(known: Provenance, *, few: bool) -> int:
        return module.OpenVinoBackend(known, lambda: loaded, precision="fp32", few=few).request_size

    assert (size(provenance, few=False), measured) == (8, [2, 4, 8, 16])
    known = replace(provenance, weights_sha256=loaded.sha256)
    assert (size(known, few=False), size(known, few=True), measured) == (8, 2, [2, 4, 8, 16])  # from the cache
    costs[4] = 4.0
    assert size(provenance, few=False) == 2


@pytest.mark.slow
@OPENVINO
def test_a_measurement_takes_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rn50feat.backends import openvino as module

    monkeypatch.setattr(module, "_MEASURED", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = weights.find("random")
    provenance = weights.provenance(chosen)
    assert module.OpenVinoBackend(provenance, lambda: network.load(chosen), precision="fp32").request_size in (
        2,
        4,
        8,
        16,
    )


@pytest.mark.slow
@OPENVINO
def test_the_stack_for_signal_handlers_outlives_backends_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rn50feat.backends.openvino import OpenVinoBackend

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = weights.find("random")
    provenance = weights.provenance(chosen)
    backends = [OpenVinoBackend(provenance, lambda: network.load(chosen), precision="fp32")]
    stack = signal_stack()
    backends.append(OpenVinoBackend(provenance, lambda: network.load(chosen), precision="fp32"))
    while backends:
        del backends[0]
        gc.collect()
        assert signal_stack() == stack


def signal_stack() -> tuple[int | None, int]:
    """Return place and size of this thread's stack for signal handlers."""

    class Stack(ctypes.Structure):
        _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.place, stack.size


@pytest.mark.slow
@OPENVINO
def test_what_openvino_cannot_compute_in_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As for bf16 where ONEDNN_MAX_CPU_ISA forbids it."""
    import openvino

    from rn50feat.backends import openvino as module

    def refuse(*_: object) -> None:
        raise RuntimeError("Exception from core.cpp:117:\nprimitive descriptors list is empty for node: maxpool\n\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    model = SimpleNamespace(reshape=lambda shape: None, input=lambda i: SimpleNamespace(shape=(2, 224, 224, 3)))
    monkeypatch.setattr(module, "convert", lambda *_: model)
    chosen = weights.find("random")
    for precision, remedy in (("bf16", "use --precision fp32, or --backend torch"), ("fp32", "use --backend torch")):
        with pytest.raises(DeviceError, match=rf"in {precision} on this CPU \(prim.*: maxpool\): {remedy}$"):
            module.OpenVinoBackend(weights.provenance(chosen), lambda: network.load(chosen), precision=precision)


@pytest.mark.slow
@OPENVINO
def test_search_with_a_cached_network_imports_no_torch(scenes: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    program = (
        "import sys; from rn50feat.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'torchvision', 'openvino_telemetry.main'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    base = [sys.executable, "-c", program]
    extract = [*base, "extract", scenes, tmp_path / "out.h5", "--weights", "random", "--backend", "openvino"]
    subprocess.run(extract, env=environment, check=True, capture_output=True)
    query = [*base, "search", scenes / "scene00.jpg", tmp_path / "out.h5", "-k", "1", "--backend", "openvino"]
    done = subprocess.run(query, env=environment, check=True, capture_output=True, encoding="utf-8")
    assert done.stdout.endswith(f"\t../{scenes.name}/scene00.jpg\n")
    assert done.stderr.endswith("[]\n")
