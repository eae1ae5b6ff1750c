"""least_work: a JPEG is not decoded in full, other images are."""

from __future__ import annotations

import pytest
from scenes import encoded, scene

from rn50feat.errors import ImageError
from rn50feat.images import least_work as module
from rn50feat.images.least_work import least_work
from rn50feat.images.provenance import Preprocessing


def test_only_what_is_no_jpeg_is_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(module, "decode", lambda data, *_, **__: decoded.append(data[:4]))
    for kind in ("JPEG", "PNG"):
        least_work(encoded(scene(0), kind), Preprocessing(), suffix="", max_pixels=10**6)
    assert decoded == [b"\x89PNG"]


def test_what_cannot_be_decoded_is_an_error() -> None:
    with pytest.raises(ImageError):
        least_work(b"no image", Preprocessing(), suffix=".png", max_pixels=10**6)
