"""The benchmark of a GPU runs, as far as it can, without one."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = str(Path(__file__).parent / "benchmarks" / "gpu.py")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")
def test_the_benchmark_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [BENCHMARK])
    with pytest.raises(SystemExit, match="no CUDA device here"):
        runpy.run_path(BENCHMARK, run_name="__main__")


@pytest.mark.slow
def test_the_benchmark_measures_what_it_can_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--device", "cpu", "--count", "4", "--seconds", "0.01", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", [BENCHMARK, *arguments])
    runpy.run_path(BENCHMARK, run_name="__main__")
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["fp32, worst error over spread"] < 1e-3
    for name in ("fp32, batch 4, fused", "extract", "network, busy"):
        assert figures[name] > 0
