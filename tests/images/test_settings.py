"""settings: what --preprocess takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rn50feat.errors import PreprocessingError
from rn50feat.images import settings
from rn50feat.images.provenance import PREPROCESSINGS, Preprocessing

TORCHVISION, TIMM, KERAS = (PREPROCESSINGS[name] for name in ("torchvision", "timm", "keras"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm", ("timm", {})),
        ("resize=235", (None, {"resize": 235})),
        ("timm,resize=235,crop=224", ("timm", {"resize": 235, "crop": 224})),
        ("interpolation=bicubic std=1 mean=0.5,0.4,0.3", (None, {
            "interpolation": "bicubic, antialiased", "std": (1.0,) * 3, "mean": (0.5, 0.4, 0.3)})),
        ("mean=0.5, 0.4, 0.3, resize=256", (None, {"mean": (0.5, 0.4, 0.3), "resize": 256})),
        ("interpolation=nearest", (None, {"interpolation": "nearest"})),
    ],
)  # fmt: skip
def test_names_and_settings(text: str, expected: object) -> None:
    assert settings.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tim", "there is no preprocessing tim: use one of torchvision, "),
        ("zoom=2", "zoom is not a setting: use resize, crop, interpolation, mean, std, each at most once"),
        ("crop=1,crop=2", "crop is given twice"),
        ("resize=big", "resize=big is not a number of pixels"),
        ("mean=a,b,c", "mean=a,b,c is not one number or three"),
        ("resize=256,timm", "timm is not a setting: use a form like"),
        ("interpolation=cubic", "there is no interpolation cubic: use one of bilinear, bicubic, lanczos"),
        ("", "there is no preprocessing : use"),
    ],
)
def test_anything_else_is_one_line(text: str, reason: str) -> None:
    with pytest.raises(PreprocessingError, match=reason):
        settings.parse(text)


def test_settings_change_a_preprocessing() -> None:
    assert TORCHVISION.changed({}) is TORCHVISION
    assert TORCHVISION.changed({"resize": 232}) == Preprocessing(resize=232)
    cubic = TORCHVISION.changed({"interpolation": "bicubic, antialiased"})
    assert cubic == TIMM == Preprocessing.from_record(cubic.as_record())
    assert TIMM.changed({"mean": (0.5, 0.5, 0.5)}) == replace(TIMM, mean=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("base", "changes", "reason"),
    [
        (TIMM, {"crop": 288}, "a crop of 288 pixels and a resize of 256 do not fit"),
        (TIMM, {"crop": 8}, "give 32 <= crop <= resize <= 4096"),
        (TIMM, {"resize": 10**6}, "do not fit|too large"),
        (TIMM, {"mean": (123.0, 1.0, 1.0)}, "mean .*: give one or three numbers of at most 1"),
        (TIMM, {"mean": (0.5, 0.5)}, "mean .*: give one or three"),
        (TIMM, {"std": (0.0, 1.0, 1.0)}, "std .*: give one or three numbers above 0"),
        (TIMM, {"std": (float("nan"), 1.0, 1.0)}, "std .*: give"),
        (KERAS, {"resize": 256}, "the preprocessing keras has a fixed resize: start from torchvision or timm"),
    ],
)
def test_settings_that_make_no_sense_are_refused(base: Preprocessing, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(PreprocessingError, match=reason):
        base.changed(changes)
    if base.filtered:
        with pytest.raises(PreprocessingError, match=reason):
            Preprocessing.from_record(replace(base, **changes).as_record())
