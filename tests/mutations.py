"""Break files at random, in the ways in which disks, networks and people do."""

from __future__ import annotations

import random


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return `data` with bytes changed, cut off, zeroed, doubled, or continued by another file's."""
    content = bytearray(data)
    at = rng.randrange(len(content))
    kind = rng.choice(["flip", "flip", "header", "cut", "zero", "double", "splice", "sizes"])
    if kind == "flip":
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == "header":
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(min(60, len(content)))] = rng.randrange(256)
    elif kind == "cut":
        del content[at:]
    elif kind == "zero":
        content[at : at + 50] = bytes(len(content[at : at + 50]))
    elif kind == "double":
        content[at:at] = content[at : at + 200]
    elif kind == "splice":
        content[at:] = other[at:]
    else:
        first = rng.randrange(min(100, len(content) - 4))
        content[first : first + 4] = rng.choice(
            [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\0\0"]
        )
    return bytes(content)
