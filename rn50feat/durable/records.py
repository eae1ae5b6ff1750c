"""Check the types in records that were read from JSON.

Takes a dataclass whose values may be anything, and returns it if they have the
types that its fields declare.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")

_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "None": type(None)}


def typed(record: T) -> T:
    """Return a dataclass unchanged; raise TypeError if a field does not have the type that it declares.

    Only numbers, text, None and tuples of floats are checked.
    """
    for field in fields(record):  # type: ignore[arg-type]
        value, declared = getattr(record, field.name), str(field.type)
        if declared == "tuple[float, ...]":
            fits = all(isinstance(part, (int, float)) for part in value)
        else:
            kinds = [_KINDS[name] for name in declared.split(" | ") if name in _KINDS]
            fits = not kinds or any(isinstance(value, kind) for kind in kinds)
        if not fits:
            raise TypeError(f"{field.name} is {value!r}"[:200])
    return record
