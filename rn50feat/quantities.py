"""Put numbers into words, for people.

In: a number of things, or of bytes. Out: words.
"""

from __future__ import annotations


def count(number: int, thing: str, things: str | None = None) -> str:
    """Return a number with its noun: 1 row, 2 rows; `things` is a plural that is not made with an s."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def size(length: float) -> str:
    """Return a number of bytes in words."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while length >= 1000 and len(units) > 1:
        length /= 1000
        del units[0]
    return f"{length:.3g} {'byte' if length == 1 and units[0] == 'bytes' else units[0]}"
