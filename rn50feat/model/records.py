"""Read the preprocessing that timm and Hugging Face publish next to their weights.

In: the path of a weights file, and timm's ``pretrained_cfg`` if the file itself
has one. Out: the preprocessing by the rules of that library, or an error that
names what rn50feat does not follow. Sources: timm's `transforms_imagenet_eval`
and `resolve_data_config`; transformers' `ConvNextImageProcessor`, the one that
its ResNets have, and its processors with ``crop_size``, such as BiT's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rn50feat.errors import PreprocessingError
from rn50feat.images.provenance import Preprocessing, interpolation
from rn50feat.model.strangers import NotThisNetworkError

_CONFIG, _PROCESSOR, _INSIDE = "config.json", "preprocessor_config.json", "pretrained_cfg"
_LARGEST = 1 << 20  # bytes of a record
# timm's names of the plain ResNet50. All its others are other networks, even with the same tensors, as resnetblur50.
_TIMM = {"resnet50", "tv_resnet50", "ssl_resnet50", "swsl_resnet50", "gluon_resnet50_v1b"}
_REMEDY = "choose one with --preprocess, such as timm,resize=235"
_PILLOW = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # Pillow's numbers, which transformers records


def inside(others: Mapping[str, object]) -> dict[str, object] | None:
    """Find timm's own record among what a file has besides tensors, whose names are dotted; None if it has none."""
    return _nested(others, f"{_INSIDE}.")


def require_network(path: Path, scheme: str) -> None:
    """Raise `NotThisNetworkError` if a record next to the weights says that their network is another one."""
    record = _read(path.with_name(_CONFIG))
    architecture = record.get("architecture")
    if isinstance(architecture, str) and architecture not in _TIMM and _is_timm(record):
        raise NotThisNetworkError(
            f"is next to a {_CONFIG} of the network {architecture}, which is not the plain ResNet50:"
            " if that is not about these weights, move them to a folder of their own"
        )
    if scheme == "Hugging Face" and record.get("model_type") == "resnet":
        plain = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}
        for name, value in plain.items():
            if record.get(name, value) != value:
                raise NotThisNetworkError(
                    f"is next to a {_CONFIG} with {name} {record[name]}, which is not the plain ResNet50:"
                    " use weights of that"
                )


def preprocessing(path: Path, own: Mapping[str, object] | None) -> Preprocessing | None:
    """Find the preprocessing that is recorded in or next to the weights at `path`; None if there is none.

    Raises `PreprocessingError` for one that rn50feat does not follow, and for
    two that differ.
    """
    found = list(_found(path, own))
    for where, other in found[1:]:
        if difference := _difference(found[0][1], other):
            raise PreprocessingError(
                f"{path.name} has two records that differ, {found[0][0]} and {where} ({difference}): {_REMEDY}"
            )
    return found[0][1] if found else None


def _found(path: Path, own: Mapping[str, object] | None) -> Iterator[tuple[str, Preprocessing]]:
    if own:
        yield f"its own {_INSIDE}", _followed(_timm, own, f"{path.name}'s {_INSIDE}")
    config, processor = (path.with_name(name) for name in (_CONFIG, _PROCESSOR))
    record = _read(config)
    if _is_timm(record):
        yield _CONFIG, _followed(_timm, record.get(_INSIDE, record), str(config))
    record = _read(processor)
    if "image_mean" in record or "image_processor_type" in record or "feature_extractor_type" in record:
        yield _PROCESSOR, _followed(_hugging_face, record, str(processor))


def _is_timm(record: Mapping[str, object]) -> bool:
    return "architecture" in record and (_INSIDE in record or "input_size" in record)


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return {}
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _nested(others: Mapping[str, object], prefix: str) -> dict[str, object] | None:
    """Put the flattened record `prefix` together again, lists of numbers included; None if there is none."""
    record: dict[str, Any] = {}
    for name, value in others.items():
        if name.startswith(prefix):
            key, _, place = name.removeprefix(prefix).partition(".")
            if place:
                record.setdefault(key, []).append(value)
            else:
                record[key] = value
    return record or None


def _followed(rule: Any, record: Any, where: str) -> Preprocessing:
    """Apply `rule` to a record; whatever is odd about the record is a `PreprocessingError`."""
    try:
        made: Preprocessing = rule(record)
        return Preprocessing.from_record(made.as_record())
    except PreprocessingError as error:
        raise PreprocessingError(f"{where} asks for what rn50feat does not do ({error}): {_REMEDY}") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise PreprocessingError(
            f"{where} cannot be understood ({type(error).__name__}: {error}): {_REMEDY}"
        ) from error


def _timm(record: Mapping[str, Any]) -> Preprocessing:
    channels, height, width = record.get("input_size", (3, 224, 224))
    if channels != 3 or height != width:
        raise PreprocessingError(f"input_size {record['input_size']}")
    if record.get("crop_mode", "center") != "center":
        raise PreprocessingError(f"crop_mode {record['crop_mode']}")
    base = Preprocessing.named("timm")
    return replace(
        base,
        resize=math.floor(height / (record.get("crop_pct") or 0.875)),
        crop=height,
        interpolation=interpolation(record.get("interpolation", "bicubic")),
        mean=tuple(map(float, record.get("mean", base.mean))),
        std=tuple(map(float, record.get("std", base.std))),
    )


def _hugging_face(record: Mapping[str, Any]) -> Preprocessing:
    kind = str(record.get("image_processor_type", record.get("feature_extractor_type", "")))
    resize, crop = _convnext(record) if kind.startswith("ConvNext") else _cropping(record, kind)
    for name in ("do_resize", "do_rescale"):
        if record.get(name, True) is not True:
            raise PreprocessingError(f"{name} {record[name]}")
    normalised = record.get("do_normalize", True)
    base = Preprocessing.named("transformers")
    resample = record.get("resample", 3)
    return replace(
        base,
        resize=resize,
        crop=crop,
        interpolation=interpolation(_PILLOW[resample] if resample in range(len(_PILLOW)) else str(resample)),
        mean=_channels(record["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=_channels(record["image_std"]) if normalised else (1.0, 1.0, 1.0),
        white=_white(record.get("rescale_factor", 1 / 255)),
    )


def _convnext(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return the resize and the crop; from 384 on, this processor squashes instead."""
    side = _edge(record["size"])
    if side >= 384:
        raise PreprocessingError(f"images squashed to {side}x{side}")
    return int(side / (record.get("crop_pct") or 224 / 256)), side


def _cropping(record: Mapping[str, Any], kind: str) -> tuple[int, int]:
    if not record.get("do_center_crop") or "crop_size" not in record:
        raise PreprocessingError(f"{kind or 'a processor'} without a central crop")
    crop = record["crop_size"]
    if isinstance(crop, dict):
        if crop["height"] != crop["width"]:
            raise PreprocessingError(f"crop_size {crop}")
        crop = crop["height"]
    return _edge(record["size"]), int(crop)


def _edge(size: Any) -> int:
    if isinstance(size, dict) and "shortest_edge" not in size:
        raise PreprocessingError(f"size {size}")
    return int(size["shortest_edge"] if isinstance(size, dict) else size)


def _channels(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(map(float, values))


def _white(factor: float) -> float:
    """Return what 255 becomes; 1/255 is written with more or fewer digits."""
    return 1.0 if math.isclose(factor * 255, 1, rel_tol=1e-6) else factor * 255


def _difference(one: Preprocessing, other: Preprocessing) -> str:
    """Name the first setting in which two records differ, with both values; "" for the same preprocessing."""
    first, second = one.as_record(), other.as_record()
    for name in ("resize", "crop", "interpolation", "mean", "std", "white"):
        if first[name] != second[name]:
            return f"{name} {first[name]} and {second[name]}"
    return ""
