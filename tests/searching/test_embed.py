"""embed: where queries are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.engines.contract import Engine, EngineOptions
from rn50feat.errors import DeviceError
from rn50feat.searching.search import CPU_QUERIES


@pytest.fixture
def pink(tmp_path: Path) -> Path:
    path = tmp_path / "pink.png"
    path.write_bytes(encoded(Image.new("RGB", (20, 20), (255, 128, 128)), "PNG"))
    return path


def test_a_few_queries_are_computed_on_the_cpu_and_many_where_a_run_would_be(store: FeatureStore, pink: Path) -> None:
    asked: list[str] = []

    def start(weights: object, provenance: object, options: EngineOptions) -> Engine:
        asked.append(options.device)
        raise DeviceError("seen")

    many = [pink] * (CPU_QUERIES + 1)
    for queries, device in (([pink], "auto"), ([pink], "cuda"), (many, "auto")):
        with pytest.raises(DeviceError, match="seen"):
            rn50feat.search(queries, store, options=EngineOptions(device=device), start=start)
    assert asked == ["cpu", "cuda", "auto"]
