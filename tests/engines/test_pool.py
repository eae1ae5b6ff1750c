"""pool: an image that ends its decoding process fails alone, and what is not its fault is no failure of it."""

from __future__ import annotations

import os
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake import LIMITS, FakeBackend
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat.engines import pool
from rn50feat.engines.contract import Batch, Failure
from rn50feat.engines.local import LocalEngine
from rn50feat.engines.pool import DecoderPool
from rn50feat.engines.worker import LEFT_TO_PARENT
from rn50feat.images.provenance import Preprocessing
from rn50feat.sources.location import at
from rn50feat.sources.reference import Reference

if TYPE_CHECKING:
    pass

BATCH = 3


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the decoding processes do odd things for pictures of odd sizes."""
    package = tmp_path / "path" / "rn50feat"
    shutil.copytree(Path(rn50feat.__file__).parent, package)
    with open(package / "images" / "decoding.py", "a") as file:
        file.write(
            "\nimport os\n\n_true = decode\n\n"
            "def decode(data, *settings, **more):\n"
            "    width = Image.open(io.BytesIO(data)).width\n"
            "    if width == 13: os.kill(os.getpid(), 11)\n"
            "    if width == 17: os._exit(3)\n"
            "    while width == 19: pass\n"
            "    if width == 23: bytearray(1 << 40)\n"
            "    return _true(data, *settings, **more)\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return tmp_path


def test_a_disk_that_hangs_is_not_the_pictures_fault(odd: Path) -> None:
    with open(odd / "path/rn50feat/sources/contents.py", "a") as file:
        file.write(
            "\nimport time\n\n_true = read\n\n"
            "def read(reference, *more):\n"
            "    if reference.size: time.sleep(9)\n"
            "    return _true(reference, *more)\n"
        )
    (odd / "a.png").write_bytes(encoded(Image.new("RGB", (30, 30)), "PNG"))
    pool = DecoderPool(Preprocessing(), **{**LIMITS, "workers": 1}, seconds=30, patience=1)
    with LocalEngine(FakeBackend(), pool, BATCH) as engine:
        (batch,) = engine.embed([Reference(str(odd / "a.png"), size, 0) for size in (0, 1, 0)])
    assert len(batch.references) == 2
    (failure,) = batch.failures
    assert (failure.cause, failure.reason) == ("access", "could not be read in time: is its disk or network there?")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "reason"),
    [
        (13, "ended its decoding process .SIGSEGV."),
        (17, "ended its decoding process .exit code 3."),
        (19, "took longer"),
        (23, "memory"),
    ],
)
def test_a_picture_that_ends_its_process_fails_alone(odd: Path, width: int, reason: str) -> None:
    for i, size in enumerate([30, width, 30, width, 30]):
        (odd / f"{i}.png").write_bytes(encoded(Image.new("RGB", (size, 30), (i, i, i)), "PNG"))
    references = [Reference(str(odd / f"{i}.png"), 0, 0) for i in range(5)]
    pool = DecoderPool(Preprocessing(), **{**LIMITS, "workers": 1}, seconds=0.5)
    with LocalEngine(FakeBackend(), pool, BATCH) as engine:
        batches: list[Batch] = list(engine.embed(references))
    rows = [row[0] for batch in batches for row in batch.features]
    failures: list[Failure] = [failure for batch in batches for failure in batch.failures]
    assert rows == [0, 2, 4]
    assert [failure.reference.location for failure in failures] == [str(odd / "1.png"), str(odd / "3.png")]
    assert all(re.search(reason, failure.reason) for failure in failures)


def test_a_signal_from_outside_is_not_the_pictures_fault(odd: Path) -> None:
    """systemd stops a service by a SIGTERM to all its processes: the decoding ones leave that to the parent."""
    (odd / "0.png").write_bytes(encoded(Image.new("RGB", (19, 30)), "PNG"))  # decoded for ever
    pool = DecoderPool(Preprocessing(), **{**LIMITS, "workers": 1}, seconds=30)
    with LocalEngine(FakeBackend(), pool, BATCH) as engine:
        (worker,) = pool._alive
        (future,) = pool.decode(0, [Reference(str(odd / "0.png"), 0, 0)])
        while not worker._ready:
            time.sleep(0.01)
        for number in LEFT_TO_PARENT:
            worker._process.send_signal(number)
        time.sleep(0.1)
        assert not future.done()
        assert os.getpgid(worker._process.pid) != os.getpgid(0)
        worker._process.kill()
        (failure,) = future.result()
        assert (failure.reason, failure.cause) == ("ended its decoding process (SIGKILL)", "access")
        (odd / "1.png").write_bytes(encoded(Image.new("RGB", (30, 30)), "PNG"))
        assert len(next(iter(engine.embed([Reference(str(odd / "1.png"), 0, 0)]))).references) == 1


@pytest.mark.parametrize(("whole", "cause"), [(1 << 30, None), (500 << 20, None), (12 << 20, "access")])
def test_a_large_image_has_its_turn_with_more_memory_than_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int, cause: str | None
) -> None:
    monkeypatch.setattr(pool, "shares", lambda *_: (10 << 20, whole))
    names = [tmp_path / f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        name.write_bytes(encoded(Image.new("RGB", (3000, 2000) if i % 2 else (30, 30), (i, 0, 0)), "PNG"))
    with LocalEngine(FakeBackend(), DecoderPool(Preprocessing(), **LIMITS), 4) as engine:
        (batch,) = engine.embed([Reference(str(name), 0, 0) for name in names])
    assert [failure.cause for failure in batch.failures] == ([cause] * 2 if cause else [])
    assert all("more memory to decode than one image may take" in failure.reason for failure in batch.failures)
    assert [row[0] for row in batch.features] == ([0, 2] if cause else [0, 1, 2, 3])


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path, packed: bool) -> None:
    if packed:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("big.png", bytes(300 << 20))
    else:
        with open(tmp_path / "big.png", "wb") as file:
            file.truncate(1 << 40)
    location = str(tmp_path / "a.zip::big.png" if packed else tmp_path / "big.png")
    with LocalEngine(FakeBackend(), DecoderPool(Preprocessing(), **LIMITS), 1) as engine:
        (batch,) = engine.embed([at(location).stat()])
    (failure,) = batch.failures
    assert (failure.cause, failure.reason.partition(" bytes, more than an image may have (")[2]) == (
        "content",
        "214,217,728): raise --max-megapixels",
    )
