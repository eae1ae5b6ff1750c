"""Parse a preprocessing as ``--preprocess`` takes it.

In: text such as ``timm``, ``resize=235,interpolation=bicubic`` or both,
``timm,resize=235``. Out: the name, if there is one, and the changed settings.
"""

from __future__ import annotations

import re
from typing import Any

from rn50feat.errors import PreprocessingError
from rn50feat.images.provenance import Preprocessing, interpolation

KEYS = ("resize", "crop", "interpolation", "mean", "std")


def parse(text: str) -> tuple[str | None, dict[str, Any]]:
    """Split `text` into a name or None, and settings for `Preprocessing.changed`.

    Items are separated by commas or spaces; mean and std take one number or
    three. Raises `PreprocessingError` for anything else.
    """
    name, last = None, ""
    given: dict[str, list[str]] = {}
    for place, item in enumerate(re.split(r"[,\s]+", text.strip())):
        key, equals, value = item.partition("=")
        if equals:
            if key not in KEYS or key in given:
                reason = "is given twice" if key in given else "is not a setting"
                raise PreprocessingError(f"{key} {reason}: use {', '.join(KEYS)}, each at most once")
            last, given[key] = key, [value]
        elif last in ("mean", "std"):
            given[last].append(item)
        elif place == 0:
            name = Preprocessing.named(item).name
        else:
            raise PreprocessingError(f"{item} is not a setting: use a form like resize=235,interpolation=bicubic")
    return name, {key: _value(key, values) for key, values in given.items()}


def _value(key: str, values: list[str]) -> Any:
    if key == "interpolation":
        return interpolation(values[0])
    try:
        if key in ("mean", "std"):
            numbers = tuple(map(float, values))
            return numbers * 3 if len(numbers) == 1 else numbers
        return int(values[0])
    except ValueError:
        kind = "one number or three" if key in ("mean", "std") else "a number of pixels"
        raise PreprocessingError(f"{key}={','.join(values)} is not {kind}") from None
