"""records: the preprocessing that is published with weights gives the input that its library makes.

The references are timm's `transforms_imagenet_eval` and transformers'
`ConvNextImageProcessor`, written out with torchvision and Pillow.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rows
from fake import FakeStart
from PIL import Image
from scenes import encoded, scene
from torchvision import transforms

import rn50feat
from rn50feat import FeatureStore
from rn50feat.errors import PreprocessingError, WeightsError
from rn50feat.images import decoding
from rn50feat.images.provenance import PREPROCESSINGS, Preprocessing, Provenance
from rn50feat.model import records, weights
from rn50feat.model.network import Normalized
from rn50feat.model.weights import Choices

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# The config.json of resnet50.a1_in1k, resnet50.tv_in1k and resnet50.a1h_in1k, by timm/models/resnet.py.
A1 = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center", **IMAGENET}
TV = {"input_size": [3, 224, 224], "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center", **IMAGENET}
A1H = {**A1, "input_size": [3, 176, 176], "crop_pct": 0.9, "test_input_size": [3, 224, 224], "test_crop_pct": 1.0}
# The preprocessor_config.json of microsoft/resnet-50.
RESNET_50 = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": IMAGENET["mean"],
    "image_std": IMAGENET["std"],
    "resample": 3,
    "size": 224,
}


def timm(image: Image.Image, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    side = record["input_size"][1]
    resize = transforms.Resize(
        math.floor(side / record["crop_pct"]), transforms.InterpolationMode(record["interpolation"])
    )
    crop = transforms.CenterCrop(side)(resize(image))
    made = transforms.Normalize(record["mean"], record["std"])(transforms.ToTensor()(crop))
    return np.asarray(crop), made.numpy()


def transformers(image: Image.Image, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    side = record["size"]
    short, (width, height) = int(side / record["crop_pct"]), image.size
    long = int(short * max(width, height) / min(width, height))
    resized = image.resize((short, long) if width <= height else (long, short), Image.Resampling(record["resample"]))
    top, left = (resized.height - side) // 2, (resized.width - side) // 2
    crop = np.asarray(resized)[top : top + side, left : left + side]
    scaled = (crop.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(record["image_mean"], np.float32), np.array(record["image_std"], np.float32)
    return crop, ((scaled - mean) / std).transpose(2, 0, 1)


def write(folder: Path, name: str, record: object) -> Path:
    (folder / name).write_text(json.dumps(record))
    return folder / "model.safetensors"


def config(settings: dict[str, Any], architecture: str = "resnet50") -> dict[str, Any]:
    return {"architecture": architecture, "num_features": 2048, "pretrained_cfg": settings}


@pytest.mark.parametrize(
    ("reference", "record", "name", "content"),
    [
        (timm, A1, "config.json", config(A1)),
        (timm, TV, "config.json", config(TV)),
        (timm, A1H, "config.json", {"architecture": "resnet50", **A1H}),
        (transformers, RESNET_50, "preprocessor_config.json", RESNET_50),
    ],
)
def test_the_input_is_that_of_the_library(tmp_path: Path, reference: Any, record: Any, name: str, content: Any) -> None:
    chosen = records.preprocessing(write(tmp_path, name, content), None)
    assert chosen is not None
    for seed, size in enumerate([(500, 375), (375, 500), (333, 500), (281, 300), (640, 427), (200, 150), (256, 343)]):
        image = scene(seed, *size)
        crop, made = reference(image, record)
        found = decoding.decode(encoded(image, "PNG"), chosen, suffix=".png", max_pixels=10**7).crop
        assert found.shape == crop.shape
        np.testing.assert_array_equal(found, crop, err_msg=str(size))
        ours = Normalized(torch.nn.Identity(), chosen)
        scaled = torch.from_numpy(crop.copy()[None]).permute(0, 3, 1, 2) * ours.scale + ours.shift
        assert np.abs(scaled[0].numpy() - made).max() < 1e-5


def test_a_large_jpeg_is_decoded_in_full(tmp_path: Path) -> None:
    chosen = records.preprocessing(write(tmp_path, "config.json", config(A1)), None)
    data = encoded(scene(3, 1600, 1200), quality=92)
    (tmp_path / "large.jpg").write_bytes(data)
    with Image.open(tmp_path / "large.jpg") as image:
        crop, _ = timm(image, A1)
    found = decoding.decode(data, chosen, suffix=".jpg", max_pixels=10**7).crop
    np.testing.assert_array_equal(found, crop)


BIT = {"image_processor_type": "BitImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 256},
       "crop_size": {"height": 224, "width": 224}, "resample": 2, "image_mean": 0.5, "image_std": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", config({}), PREPROCESSINGS["timm"]),
        ("config.json", {"model_type": "bert", "hidden_size": 2}, None),
        ("config.json", [1], None),
        ("preprocessor_config.json", {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224},
         "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}, PREPROCESSINGS["transformers"]),
        ("preprocessor_config.json", BIT, replace(PREPROCESSINGS["transformers"],
         interpolation="bilinear, antialiased", mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("preprocessor_config.json", {**RESNET_50, "do_normalize": False, "rescale_factor": 1 / 127.5},
         replace(PREPROCESSINGS["transformers"], mean=(0.0,) * 3, std=(1.0,) * 3, white=2.0)),
        ("preprocessor_config.json", {**RESNET_50, "rescale_factor": 0.00392156862745098},
         PREPROCESSINGS["transformers"]),
    ],
)  # fmt: skip
def test_records_of_many_forms(tmp_path: Path, name: str, content: object, expected: Preprocessing | None) -> None:
    assert records.preprocessing(write(tmp_path, name, content), None) == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", config({**A1, "crop_mode": "squash"}), "does not do .crop_mode squash."),
        ("config.json", config({**A1, "interpolation": "random"}), "does not do .there is no interpolation random"),
        ("config.json", config({**A1, "input_size": [3, 224, 448]}), "does not do .input_size"),
        ("config.json", config({**A1, "mean": "x"}), "cannot be understood .ValueError"),
        ("config.json", config({**A1, "crop_pct": 1e-9}), "too large"),
        ("preprocessor_config.json", {**RESNET_50, "size": 384}, "does not do .images squashed to 384x384."),
        ("preprocessor_config.json", {**RESNET_50, "do_resize": False}, "does not do .do_resize False."),
        ("preprocessor_config.json", {"image_processor_type": "ViTImageProcessor", "size": {"height": 9}},
         "does not do .ViTImageProcessor without a central crop."),
        ("preprocessor_config.json", {**RESNET_50, "resample": 9}, "there is no interpolation 9"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_one_line(tmp_path: Path, name: str, content: object, reason: str) -> None:
    with pytest.raises(PreprocessingError, match=rf"{name} .*{reason}.*: choose one with --preprocess, such as"):
        records.preprocessing(write(tmp_path, name, content), None)


def test_records_that_differ_are_named_and_the_user_decides(tmp_path: Path) -> None:
    write(tmp_path, "config.json", config(A1))
    path = write(tmp_path, "preprocessor_config.json", RESNET_50)
    differ = "differ, config.json and preprocessor_config.json .resize 235 and 256.: choose one with --preprocess"
    with pytest.raises(PreprocessingError, match=differ):
        records.preprocessing(path, None)
    with pytest.raises(PreprocessingError, match="its own pretrained_cfg and config.json .resize 256 and 235."):
        records.preprocessing(path, TV)
    write(tmp_path, "config.json", config({**A1, "crop_pct": 0.875}))
    assert records.preprocessing(path, None) == PREPROCESSINGS["timm"]


@pytest.fixture
def file(resnet50: torch.nn.Module, tmp_path: Path) -> Path:
    (tmp_path / "published").mkdir()
    torch.save({"state_dict": resnet50.state_dict(), "pretrained_cfg": A1}, tmp_path / "published/own.pth")
    torch.save(resnet50.state_dict(), tmp_path / "published/bare.pth")
    return tmp_path / "published/bare.pth"


def test_what_is_explicit_wins_over_records(file: Path) -> None:
    def chosen(name: str = "bare.pth", **choices: str) -> Preprocessing:
        return weights.provenance(weights.find(str(file.with_name(name))), Choices(**choices)).preprocessing

    recorded = replace(PREPROCESSINGS["timm"], resize=235)
    assert (chosen(), chosen("own.pth")) == (Preprocessing(), recorded)
    write(file.parent, "config.json", config(A1))
    assert chosen() == recorded
    assert chosen(preprocess="torchvision") == Preprocessing()
    assert chosen(preprocess="resize=240") == replace(recorded, resize=240)
    assert chosen(preprocess="timm,interpolation=lanczos").interpolation == "lanczos, antialiased"
    write(file.parent, "config.json", config({**A1, "crop_mode": "border"}))
    with pytest.raises(PreprocessingError, match="crop_mode border"):
        chosen()
    assert chosen(preprocess="torchvision") == Preprocessing()


@pytest.mark.parametrize("flat", [False, True])
def test_a_record_of_another_network_is_refused(file: Path, flat: bool) -> None:
    record = {"architecture": "resnetblur50", **A1} if flat else config(A1, "resnetblur50")
    write(file.parent, "config.json", record)
    with pytest.raises(
        WeightsError, match="bare.pth is next to a config.json of the network resnetblur50, .*: if that"
    ):
        weights.provenance(weights.find(str(file)))


def test_the_preprocessing_is_recorded_in_the_store(file: Path, scenes: Path, tmp_path: Path, start: FakeStart) -> None:
    write(file.parent, "config.json", config(A1))
    store = tmp_path / "out.h5"
    rn50feat.extract(scenes, store, weights=str(file.with_name("own.pth")), start=start)
    known = FeatureStore(store).provenance
    assert known.preprocessing == replace(PREPROCESSINGS["timm"], resize=235)
    assert known.weights_layout == "torchvision: state_dict., 265 tensors; left out: fc"
    assert len(rows(store)) == 12
    (file.parent / "config.json").unlink()  # the store knows it by now
    found = weights.find(str(file.with_name("own.pth")))
    assert weights.provenance(found, Choices(), known).preprocessing == known.preprocessing
    other = weights.provenance(found, Choices(preprocess="resize=256"), known)
    assert known.difference(other) == ("resize", "235", "256")


def test_older_versions_refuse_such_a_store() -> None:
    """They know neither the name nor the field: their reader raises for both, which `from_json` turns into advice."""
    plain = json.loads(Provenance("w.pth").to_json())
    assert "weights_layout" not in plain and set(plain["preprocessing"]) == {
        *"name resize crop interpolation mean std white channels transparency exif decoding".split()
    }
    assert PREPROCESSINGS["timm"].as_record()["name"] not in ("torchvision", "keras", "slim", "slim-pillow")
