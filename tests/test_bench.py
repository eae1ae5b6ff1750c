"""bench: rates of all stages, and the one that limits, on the user's own pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake import FakeBackend

from rn50feat import bench
from rn50feat.cli.main import main
from rn50feat.engines import local
from rn50feat.errors import SourceError


class SlowBackend(FakeBackend):
    batch_size = 4

    def features(self, crops: np.ndarray) -> np.ndarray:
        time.sleep(0.02 * len(crops))
        return super().features(crops)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.2)
    monkeypatch.setattr(local, "backend", lambda *arguments, **settings: SlowBackend())


def test_the_slowest_stage_is_named(pictures: Path) -> None:
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "broken.png").write_text("no picture")
    result = bench.bench(pictures)
    assert result.pictures == 6
    assert 0 < result.network <= 50  # it sleeps 20 ms a picture
    assert result.bottleneck == "network"
    assert "a GPU" in result.advice
    assert 0 < result.together < 60
    assert min(result.listing, result.reading, result.decoding) > 0


def test_the_command_prints_a_table_or_json(pictures: Path) -> None:
    printed = CliRunner().invoke(main, ["bench", str(pictures)]).output
    assert [line.split()[0] for line in printed.splitlines()] == [
        "listing", "reading", "decoding", "network", "together", "the",
    ]  # fmt: skip
    assert json.loads(CliRunner().invoke(main, ["bench", str(pictures), "--json"]).output)["backend"] == "fake"


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        bench.bench(tmp_path)


@pytest.mark.parametrize(
    ("bottleneck", "backend", "device", "advice"),
    [
        ("network", "torch", "cpu", "pip install 'rn50feat[openvino]', a GPU"),
        ("network", "openvino", "cpu", "a GPU"),
        ("network", "torch", "cuda:0", "a faster GPU"),
        ("decoding", "torch", "cuda:0", "--decoder gpu, more cores"),
        ("decoding", "torch", "cpu", "more cores"),
        ("reading", "torch", "cpu", "a faster disk"),
    ],
)
def test_the_advice_is_about_what_limits(bottleneck: str, backend: str, device: str, advice: str) -> None:
    assert bench._advice(bottleneck, backend, device).startswith(advice)
