"""bench: rates of all stages, and the one that limits, on the user's own pictures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake import FakeBackend

from rn50feat.cli.main import main
from rn50feat.engines import calibration, local
from rn50feat.engines.contract import Batch, EngineOptions, Failure
from rn50feat.errors import SourceError
from rn50feat.extraction import bench
from rn50feat.images.provenance import Provenance
from rn50feat.images.quantization import Quantization
from rn50feat.model.weights import Weights
from rn50feat.sources.reference import Reference


class SlowBackend(FakeBackend):
    batch_size = 4

    def features(self, crops: np.ndarray) -> np.ndarray:
        time.sleep(0.05 * len(crops))
        return super().features(crops)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.2)
    monkeypatch.setattr(local, "backend", lambda *arguments, **settings: SlowBackend())


def test_the_slowest_stage_is_named(pictures: Path) -> None:
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "broken.png").write_text("no picture")
    result = bench.bench(pictures)
    assert (result.pictures, result.left_out) == (5, 1)
    assert 0 < result.network <= 20  # it sleeps 50 ms a picture
    assert result.bottleneck == "network"
    assert "a GPU" in result.advice
    assert 0 < result.together < 25
    assert min(result.listing, result.reading, result.decoding) > 0


def test_the_command_prints_a_table_or_json(pictures: Path) -> None:
    (pictures / "broken.png").write_text("no picture")
    printed = CliRunner().invoke(main, ["bench", str(pictures)]).output
    assert [line.split()[0] for line in printed.splitlines()] == [
        "listing", "reading", "decoding", "network", "together", "spent", "least", "left", "the",
    ]  # fmt: skip
    assert "left out          1  images" in printed
    result = json.loads(CliRunner().invoke(main, ["bench", str(pictures), "--json"]).output)
    assert (result["backend"], result["left_out"]) == ("fake", 1)
    assert list(result["cost"]["spent"]) == ["read", "decode", "network", "rest"]


def test_in_int8_ranges_are_measured_on_the_pictures(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges, prepared = Quantization((1.0, 2.0)), []

    def measure(references: list[Reference], *arguments: object, source: str) -> Quantization:
        assert len(references) == 5
        return ranges

    def prepare(weights: Weights, provenance: Provenance, options: EngineOptions) -> SlowBackend:
        prepared.append(provenance.quantization)
        return SlowBackend()

    monkeypatch.setattr(calibration, "unchecked", measure)
    monkeypatch.setattr(local, "backend", prepare)
    bench.bench(pictures, options=EngineOptions(precision="int8"))
    bench.bench(pictures)
    assert prepared == [ranges, None]


def test_a_picture_that_fails_on_the_way_counts_in_no_rate() -> None:
    class Failing:
        def embed(self, references: Iterable[str]) -> Iterator[Batch]:
            for reference in references:
                yield Batch((), np.empty((0, 2048), np.float32), (Failure(reference, "is gone"),))

    assert bench._together(Failing(), ["a.jpg"]) == 0


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no image among"):
        bench.bench(tmp_path)


def test_archives_and_lists_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    with pytest.raises(
        SourceError, match=r"list.txt is no image or folder, and bench reads no archives or lists: name"
    ):
        bench.bench(tmp_path / "list.txt")


def test_the_network_gets_the_pictures_themselves(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(SlowBackend, "features", lambda self, crops: seen.append(crops) or np.zeros((len(crops), 2048)))
    bench.bench(pictures)
    assert seen[0].shape == (4, 224, 224, 3)
    assert len({crop.tobytes() for crop in seen[0]}) == 4


def test_a_picture_that_cannot_be_decoded_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("x\n")
    done = CliRunner().invoke(main, ["bench", str(tmp_path / "broken.jpg")])
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: \S+broken.jpg holds no image that can be decoded \(.*\): name .*\n", done.output)


@pytest.mark.parametrize(
    ("bottleneck", "backend", "device", "advice"),
    [
        ("network", "torch", "cpu", "pip install 'rn50feat[openvino]', a GPU"),
        ("network", "openvino", "cpu", "a GPU"),
        ("network", "torch", "cuda:0", "a faster GPU"),
        ("decoding", "torch", "cuda:0", "more cores, or smaller images"),
        ("decoding", "torch", "cpu", "more cores"),
        ("reading", "torch", "cpu", "a faster disk"),
    ],
)
def test_the_advice_is_about_what_limits(bottleneck: str, backend: str, device: str, advice: str) -> None:
    assert bench._advice(bottleneck, backend, device).startswith(advice)
