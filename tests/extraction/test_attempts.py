"""attempts: what failed for lack of an extra, or by a limit, is tried again once that has changed, and only then."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import FakeBackend, FakeStart
from packing import packed_folder
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import EngineOptions, FeatureStore
from rn50feat.engines import allowance, worker
from rn50feat.engines.contract import StartEngine
from rn50feat.engines.local import LocalEngine
from rn50feat.engines.pool import DecoderPool, WorkerDied
from rn50feat.errors import ImageError, TooLargeError
from rn50feat.extraction.attempts import Attempts
from rn50feat.extraction.preview import preview
from rn50feat.images import decoding, kinds
from rn50feat.images.provenance import Preprocessing, Provenance
from rn50feat.model.weights import Weights
from rn50feat.sources.reference import Reference
from rn50feat.store.damage_notes import refusal as refusal_of
from rn50feat.store.reader import FailureRecord
from rn50feat.store.summary import Summary

MEGA = 1_000_000
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)


def extract(start: StartEngine, source: Path, **settings: object) -> Summary:
    return rn50feat.extract(source, source.parent / "out.h5", start=start, **{"weights": "random", **settings})


def refusal(max_pixels: int, data: bytes = b"") -> str:
    data = data or encoded(Image.new("RGB", (3000, 1000)), "PNG")
    with pytest.raises(ImageError) as caught:
        decoding.decode(data, Preprocessing(), suffix=".png", max_pixels=max_pixels)
    return str(caught.value)


def without_memory(max_pixels: int, *, enough: bool = True) -> str:
    most = allowance.needed(max_pixels)
    said = {"reason": "no memory", "cause": "memory"}
    return worker._answered(lambda: said, allowance.Allowance(most, most, 0, enough=enough), nullcontext)["reason"]


def another(reason: str, megapixels: int, **settings: Any) -> bool:
    return Attempts(megapixels * MEGA, **settings).another(FailureRecord("x.jpg", reason, 1, 1, 1))


@pytest.mark.parametrize(
    ("reason", "no", "yes"),
    [
        (refusal(1 * MEGA), [1, 2], [3, 200]),
        (refusal(2 * MEGA), [1, 2], [3, 200]),
        (str(TooLargeError(10**9, allowance.largest_file(MEGA))), [1, 108], [109, 200]),
        (without_memory(200 * MEGA), [100, 200], [300, 10_000]),
        (without_memory(20_000 * MEGA), [200, 20_000], [30_000]),
        (str(WorkerDied(-signal.SIGPROF, allowance.seconds(200 * MEGA))), [100, 200], [400]),
        (str(WorkerDied(-signal.SIGPROF, allowance.seconds(400 * MEGA))), [200, 400], [500]),
        # As early versions put it.
        (
            "is too large, 20000x15000 (300 of 200 megapixels): raise --max-megapixels, with --retry-failed",
            [299],
            [300],
        ),
        ("is larger than the memory that one picture is allowed", [], [1]),
        ("needs more memory to decode than one picture is allowed", [], [1]),
        ("took longer to decode than one picture may", [], [1]),
        # The image's own fault, or none that changed.
        ("is not an image in a format that Pillow reads", [1, 100_000], []),
        ("ended its decoding process (SIGSEGV)", [100_000], []),
        ("cannot be decoded: is too large, 1x1 of nothing", [100_000], []),
    ],
)
def test_a_limit_that_was_raised_gives_another_attempt(reason: str, no: list[int], yes: list[int]) -> None:
    assert [another(reason, megapixels) for megapixels in (*no, *yes)] == [False] * len(no) + [True] * len(yes)
    assert another(reason, 1, all_again=True)


def test_formats_that_are_read_by_now_give_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "HEIC", False)
    heic, jxl = refusal(MEGA, HEIC), refusal(MEGA, b"\xff\x0a")
    assert not another(heic, 1) and not another(jxl, 1)
    monkeypatch.setattr(kinds, "HEIC", True)
    assert another(heic, 1)
    monkeypatch.setattr(kinds, "_UNSUPPORTED", [entry for entry in kinds._UNSUPPORTED if entry[1] != "JPEG XL"])
    assert another(jxl, 1)


def test_damaged_images_that_were_skipped_get_rows_when_they_are_kept() -> None:
    reason = refusal_of(Reference("x.jpg", 1, 1, damage="a warning: of the decoder's"), "skip")
    assert [another(reason, 1, damaged=damaged) for damaged in ("skip", "keep")] == [False, True]


@pytest.mark.parametrize("packed", [False, True])
def test_an_extra_installed_later_and_lost_again(
    pictures: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    (pictures / "new.heic").write_bytes(HEIC)
    source = packed_folder(pictures.parent / "all.tar", pictures) if packed else pictures
    store = source.parent / "out.h5"
    monkeypatch.setattr(kinds, "HEIC", False)
    assert extract(start, source).failed == 1
    for _ in range(2):
        assert extract(start, source).failed_before == 1
    monkeypatch.setattr(kinds, "HEIC", True)
    assert preview(source, store).compute == 1
    monkeypatch.setattr(decoding, "decode", lambda *_, **__: decoding.Decoded(np.zeros((224, 224, 3), np.uint8)))
    assert (extract(start, source).new, len(FeatureStore(store).failures())) == (1, 0)
    monkeypatch.setattr(kinds, "HEIC", False)
    assert (extract(start, source).unchanged, len(FeatureStore(store))) == (6, 6)


def test_what_fails_again_for_another_reason_is_left_alone(
    pictures: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "broken.heic").write_bytes(HEIC)
    monkeypatch.setattr(kinds, "HEIC", False)
    extract(start, pictures)
    monkeypatch.setattr(kinds, "HEIC", True)
    assert [extract(start, pictures).failed for _ in range(3)] == [1, 0, 0]
    (failure,) = FeatureStore(pictures.parent / "out.h5").failures()
    assert (failure.attempts, "HEIC" in failure.reason) == (2, False)


def test_a_merged_ledger_keeps_what_was_lacking(
    pictures: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "new.heic").write_bytes(HEIC)
    monkeypatch.setattr(kinds, "HEIC", False)
    extract(start, pictures)
    store = pictures.parent / "merged.h5"
    rn50feat.merge([pictures.parent / "out.h5"], store)
    assert preview(pictures, store).compute == 0
    monkeypatch.setattr(kinds, "HEIC", True)
    assert preview(pictures, store).compute == 1


def local(weights: Weights, provenance: Provenance, options: EngineOptions) -> LocalEngine:
    limit = options.max_megapixels * MEGA
    return LocalEngine(FakeBackend(), DecoderPool(provenance.preprocessing, slots=12, workers=1, max_pixels=limit), 3)


def test_a_run_tries_again_with_a_higher_limit_and_keeps_rows_with_a_lower_one(pictures: Path) -> None:
    (pictures / "large.png").write_bytes(encoded(Image.new("RGB", (1500, 1000)), "PNG"))
    counts = [
        (done.new, done.unchanged, done.failed, done.failed_before)
        for most in (1, 1, 2, 1)
        if (done := extract(local, pictures, options=EngineOptions(max_megapixels=most)))
    ]
    assert counts == [(5, 0, 1, 0), (0, 5, 0, 1), (1, 5, 0, 0), (0, 6, 0, 0)]


# AppleDouble

SIDECAR = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)


@pytest.mark.parametrize("packed", [False, True])
def test_appledouble_files_are_counted_and_are_no_failures(pictures: Path, start: FakeStart, packed: bool) -> None:
    for name, data in {
        "._red.png": SIDECAR,
        "__MACOSX/sub/._green.png": SIDECAR.replace(b"\0\2", b"\0\1", 1),
        ".AppleDouble/red.png": SIDECAR,
        "copied.png": SIDECAR,
        "._notes.txt": SIDECAR,
        "._real.png": encoded(Image.new("RGB", (8, 8)), "PNG"),
        "__MACOSX/real.png": encoded(Image.new("RGB", (9, 8)), "PNG"),
        "._broken.png": b"neither",
    }.items():
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(data)
    source = packed_folder(pictures.parent / "all.zip", pictures) if packed else pictures
    first = extract(start, source)
    assert (first.new, first.failed, first.ignored, first.appledouble) == (7, 1, 5, 5)
    second = extract(start, source)
    assert (second.unchanged, second.failed_before, second.ignored) == (7, 1, 5)
    (failure,) = FeatureStore(source.parent / "out.h5").failures()
    assert failure.path.endswith("._broken.png")


@pytest.mark.parametrize("packed", [False, True])
def test_entries_of_early_versions_for_them_are_cleared(
    pictures: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    (pictures / "._red.png").write_bytes(SIDECAR)
    source = packed_folder(pictures.parent / "all.tar", pictures) if packed else pictures
    with monkeypatch.context() as patch:
        patch.setattr(kinds, "is_appledouble", lambda head: False)
        assert extract(start, source).failed == 1
    for _ in range(2):
        summary = extract(start, source)
        assert (summary.unchanged, summary.failed_before, summary.ignored) == (5, 0, 1)
    assert FeatureStore(source.parent / "out.h5").failures() == []
