"""engines.gpu_decoder and engines.gpu_worker: what a GPU decodes, and what is left to the cores; run on the CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from fake import FakeBackend
from PIL import Image
from scenes import encoded, scene, turned

from rn50feat import images
from rn50feat.engines import EngineOptions, Failure, gpu_decoder, helped_decoder, local
from rn50feat.engines.gpu_decoder import GpuDecoder
from rn50feat.engines.helped_decoder import HelpedDecoder
from rn50feat.engines.local import LocalEngine
from rn50feat.engines.pool import DecoderPool, Outcome
from rn50feat.errors import DeviceError, RN50FeatError
from rn50feat.images import PlainJpeg
from rn50feat.places import sources
from rn50feat.places.sources import Reference
from rn50feat.provenance import Preprocessing

PLAIN = Preprocessing()
SLOTS = 16


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them start in twice the time here, each with a torch of its own."""
    monkeypatch.setattr(gpu_decoder, "PROCESSES", 1)


def rgb_jpeg() -> bytes:
    """A JPEG of three channels that are red, green and blue themselves, as Photoshop can write it."""
    return encoded(scene(1), keep_rgb=True)


def test_only_whole_baseline_jpegs_in_colour_are_plain() -> None:
    data = encoded(scene(3, 330, 250), quality=90)
    assert images.plain_jpeg(data, max_pixels=10**6) == PlainJpeg(330, 250, 1)
    assert images.plain_jpeg(data + b"trailing bytes", max_pixels=10**6) == PlainJpeg(330, 250, 1)
    assert images.plain_jpeg(turned(scene(3, 330, 250), 6), max_pixels=10**6) == PlainJpeg(250, 330, 6)
    thumbnail = Image.Exif()
    thumbnail[0x0112] = 3
    with_thumbnail = encoded(scene(3), exif=thumbnail.tobytes() + encoded(scene(4, 32, 32)))
    left = {
        "too large": (data, 330 * 250 - 1),
        "cut off": (data[:-2], 10**6),
        "half": (data[: len(data) // 2], 10**6),
        "half, with a whole thumbnail": (with_thumbnail[: len(with_thumbnail) // 2], 10**6),
        "header": (data[:150], 10**6),
        "empty": (b"", 10**6),
        "progressive": (encoded(scene(3), progressive=True), 10**6),
        "grey": (encoded(scene(3).convert("L")), 10**6),
        "CMYK": (encoded(scene(3).convert("CMYK")), 10**6),
        "RGB": (rgb_jpeg(), 10**6),
        "PNG": (encoded(scene(3), "PNG"), 10**6),
        "text": (b"no picture", 10**6),
    }
    for name, (other, most) in left.items():
        assert images.plain_jpeg(other, max_pixels=most) is None, name
    assert images.plain_jpeg(with_thumbnail, max_pixels=10**6) == PlainJpeg(320, 240, 3)


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(PLAIN, slots=SLOTS, workers=1, max_pixels=10**7)
    yield pool
    pool.close()


def decoder(pool: DecoderPool, *, share: bool = False) -> GpuDecoder:
    return GpuDecoder(pool, ["cpu"], PLAIN, max_pixels=10**7, share=share)


def outcomes(futures: Sequence[Future[list[Outcome]]]) -> list[Outcome]:
    return [outcome for future in futures for outcome in future.result()]


def test_crops_and_failures_are_those_of_the_cores(pool: DecoderPool, tmp_path: Path) -> None:
    whole = encoded(scene(5, 500, 375), quality=90)
    files = {
        "a.jpg": whole,
        "broken.jpg": whole[: len(whole) // 2],
        "corrupt.jpg": whole[:400] + whole[1400:],
        "grey.jpg": encoded(scene(6).convert("L")),
        "picture.png": encoded(scene(6), "PNG"),
        "text.jpg": b"no picture",
        "z.jpg": encoded(scene(7, 333, 512), quality=90),
        **{f"turned{i}.jpg": turned(scene(8, 331, 250), i) for i in range(1, 9)},
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    references = [*sources.references([str(tmp_path)]), Reference(str(tmp_path / "gone.jpg"), 1, 1)]
    assert len(references) == SLOTS
    expected = outcomes(pool.decode(0, references))
    theirs = pool.crops.copy()
    pool.crops[:] = 0
    gpu = decoder(pool)
    try:
        assert outcomes(gpu.decode(0, references)) == expected  # facts, reasons and causes
    finally:
        gpu.stop()
    for i, outcome in enumerate(expected):
        if isinstance(outcome, Reference):
            assert np.abs(pool.crops[i].astype(int) - theirs[i]).max() <= 2, references[i].location
    failed = [Path(each.reference.location).name for each in expected if isinstance(each, Failure)]
    assert failed == ["broken.jpg", "corrupt.jpg", "text.jpg", "gone.jpg"]


def test_a_process_that_dies_is_replaced_and_at_last_left_out(
    pool: DecoderPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(Image.new("RGB", (40, 40), (50 * i, 0, 0))))
    references = list(sources.references([str(tmp_path)]))
    gpu = decoder(pool)
    try:
        for _ in range(gpu_decoder.LOSSES + 1):
            pool.crops[:] = 255
            for worker in gpu._alive:
                worker._process.kill()
                worker._process.wait()
            found = outcomes(gpu.decode(0, references))
            assert all(isinstance(outcome, Reference) for outcome in found)
            assert np.abs(pool.crops[:4, 100, 100, 0].astype(int) - [0, 50, 100, 150]).max() <= 2
    finally:
        gpu.stop()
    assert "decoded by the cores from now on" in caplog.text


def test_a_gpu_that_is_busy_leaves_requests_to_the_cores(pool: DecoderPool, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(encoded(scene(1)))
    references = list(sources.references([str(tmp_path)]))
    gpu = decoder(pool, share=True)
    try:
        futures = [gpu.decode(i, references) for i in range(12)]  # before its processes have even started
        assert all(isinstance(outcome, Reference) for each in futures for outcome in outcomes(each))
        assert np.abs(pool.crops[:12].astype(int) - pool.crops[0]).max() <= 2
    finally:
        gpu.stop()


class CudaBackend(FakeBackend):
    device = "cuda:0"


def test_a_gpu_that_cannot_be_used_is_an_error_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(device: str, decoder: str, decoding: str = "scaled") -> None:
        backend = CudaBackend()
        backend.device = device
        preprocessing = Preprocessing(decoding=decoding)
        with local.engine(backend, preprocessing, EngineOptions(decoder=decoder, batch_size=2)):
            pass

    with pytest.raises(DeviceError, match="--decoder gpu needs a CUDA device, and the network is on cpu"):
        start("cpu", "gpu")
    with pytest.raises(DeviceError, match="exact decoding: use --decoder cpu"):
        start("cuda:0", "gpu", "exact")
    with pytest.raises(RN50FeatError, match="a decoding process could not start"):
        start("cuda:99", "gpu")
    start("cuda:0", "auto")  # starts nothing before it is needed


def test_the_gpu_helps_when_the_network_waits_for_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helped_decoder, "TRIAL", 4)
    data = encoded(scene(2, 640, 480), quality=92)
    for i in range(60):
        (tmp_path / f"{i:02}.jpg").write_bytes(data + bytes([i]))
    references = list(sources.references([str(tmp_path)]))
    pool = DecoderPool(PLAIN, slots=SLOTS, workers=1, max_pixels=10**7)
    helped = HelpedDecoder(pool, lambda: decoder(pool, share=True))
    seen: list[Reference] = []
    with LocalEngine(FakeBackend(), helped, 2, watch=helped.watch) as engine:
        for batch in engine.embed(references):
            seen += batch.references
            if len(seen) == 20:  # enough to tell; the help takes seconds to start
                until = time.monotonic() + 60
                while helped._gpu is None and time.monotonic() < until:
                    time.sleep(0.05)
        assert helped._gpu is not None
        processes = [worker._process for worker in helped._gpu._alive]
    assert [os.path.basename(reference.location) for reference in seen] == [f"{i:02}.jpg" for i in range(60)]
    assert all(process.poll() is not None for process in processes)


def test_without_help_the_cores_go_on(pool: DecoderPool) -> None:
    helped = HelpedDecoder(pool, lambda: GpuDecoder(pool, ["cuda:99"], PLAIN, max_pixels=1, share=True))
    helped._get_help()  # there is no such device
    assert helped._gpu is None
    assert helped.decode(0, []) == []
