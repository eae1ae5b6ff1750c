"""contract: held by the fake engine, the local and the Ray one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from fake import LIMITS, FakeBackend, FakeEngine, LocalFakeStart
from PIL import Image
from scenes import encoded

from rn50feat.engines import ray
from rn50feat.engines.contract import Engine, EngineOptions
from rn50feat.engines.local import BUFFERS, LocalEngine
from rn50feat.engines.pool import DecoderPool
from rn50feat.errors import RN50FeatError
from rn50feat.images.provenance import Preprocessing
from rn50feat.model.weights import find, provenance
from rn50feat.sources import contents
from rn50feat.sources.location import at
from rn50feat.sources.reference import Reference

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

BATCH = 3


@pytest.fixture(scope="module")
def ray_engine(ray_cluster: Cluster) -> Iterator[Engine]:
    weights = find("random")
    with ray.start(
        weights, provenance(weights), EngineOptions(), address=ray_cluster.address, each=LocalFakeStart()
    ) as engine:
        yield engine


@pytest.fixture(params=["fake", "local", pytest.param("ray", marks=[pytest.mark.network, pytest.mark.slow])])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "fake":
        yield FakeEngine(Preprocessing(), BATCH)
    elif request.param == "ray":
        yield request.getfixturevalue("ray_engine")
    else:
        with LocalEngine(FakeBackend(), DecoderPool(Preprocessing(), **LIMITS), BATCH) as local:
            yield local


@pytest.fixture
def shades(tmp_path: Path) -> list[Reference]:
    """Twenty pictures; the value of each is its number times ten. Every fourth is broken."""
    for i in range(20):
        data = encoded(Image.new("RGB", (30, 30), (10 * i, 0, 0)), "PNG")
        (tmp_path / f"{i:02}.png").write_bytes(data if i % 4 else data[:40])
    return [place.stat() for place in at(str(tmp_path)).walk()]


def test_every_reference_comes_back_exactly_once_with_its_own_features(engine: Engine, shades: list[Reference]) -> None:
    batches = list(engine.embed(iter(shades)))
    good = {ref.location: row for batch in batches for ref, row in zip(batch.references, batch.features)}
    failed = [failure.reference.location for batch in batches for failure in batch.failures]
    assert sorted([*good, *failed]) == [reference.location for reference in shades]
    assert sorted(failed) == [reference.location for reference in shades[::4]]
    assert all(row[0] == 10 * int(Path(location).stem) for location, row in good.items())
    assert all(batch.features.dtype == np.float32 for batch in batches)


def test_references_come_back_with_the_facts_of_their_bytes(engine: Engine, shades: list[Reference]) -> None:
    stale = [replace(reference, size=1, mtime_ns=1) for reference in shades]
    read = [reference for batch in engine.embed(stale) for reference in batch.references]
    assert read == [contents.digest(reference) for i, reference in enumerate(shades) if i % 4]


def test_references_are_taken_as_they_are_needed(engine: Engine, shades: list[Reference]) -> None:
    taken: list[Reference] = []

    def stream() -> Iterator[Reference]:
        for reference in shades * 10:
            taken.append(reference)
            yield reference

    next(iter(engine.embed(stream())))
    two_workers = 2 * 2 * 32  # the first portions, two for each
    assert len(taken) <= (two_workers if isinstance(engine, ray.RayEngine) else (BUFFERS + 1) * BATCH)


def test_nothing_in_nothing_out(engine: Engine) -> None:
    assert list(engine.embed([])) == []


def test_a_file_that_vanished_is_a_failure(engine: Engine, shades: list[Reference]) -> None:
    os.remove(shades[1].location)
    (batch,) = engine.embed([shades[1], shades[2]])
    assert [(failure.reason, failure.cause) for failure in batch.failures] == [("has vanished", "vanished")]
    assert len(batch.references) == 1


def test_a_process_that_cannot_start_is_an_error_not_a_failure_of_every_picture(
    tmp_path: Path, shades: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with LocalEngine(FakeBackend(), DecoderPool(Preprocessing(), **LIMITS), BATCH) as engine:
        with pytest.raises(RN50FeatError, match="could not start .exit code 1."):
            list(engine.embed(shades))


def test_a_module_in_the_working_folder_is_not_imported(
    tmp_path: Path, shades: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with LocalEngine(FakeBackend(), DecoderPool(Preprocessing(), **LIMITS), BATCH) as engine:
        assert sum(len(batch.references) for batch in engine.embed(shades)) == 15
