"""Read what a TIFF declares: which of its images is the one, and what its samples are.

In: the bytes of a TIFF, or of a camera's raw file in its form. Out: the bytes
to decode, with the largest embedded preview in the place of a raw image; and
for an image that Pillow opened, what its numbers mean. Pillow by itself reads
the first directory, and ignores signs, what zero stands for in more than 8
bits, and whether a fourth sample is transparency.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, TiffImagePlugin

from rn50feat.errors import ImageError
from rn50feat.images import jpeg
from rn50feat.images.numbers import Numbers

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _MEANING, _OFFSETS, _ORIENTATION = 256, 257, 258, 259, 262, 273, 274
_SAMPLES, _LENGTHS, _SUBDIRECTORIES, _EXTRA, _FORMAT = 277, 279, 330, 338, 339
_KIND, _OLD_KIND, _JPEG_TABLES, _JPEG, _JPEG_LENGTH, _SUBSAMPLING = 254, 255, 347, 513, 514, 530
_DNG_VERSION = 50706
_WHITE_IS_ZERO, _RGB, _YCBCR = 0, 2, 6
_RAW_MEANINGS = (32803, 34892)  # a colour filter array, and linear raw
_RAW_COMPRESSIONS = (32767, 32769, 32770, 34713, 65535)  # of Sony, Epson, Samsung, Nikon, Pentax
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_MOST = 64  # directories that are looked at
_SMALLEST = 224  # pixels on the shorter side of a preview: what the network sees of an image

Directory = Any  # Pillow's ImageFileDirectory_v2, a mapping from tags to values


def _teach_pillow() -> None:
    """Let Pillow open what it could read but does not: the other byte order, zeros for white, floats of other sizes.

    `numbers` says what is then read.
    """
    for order, b in ((b"II", ""), (b"MM", "B")):
        for kind, bits, mode, raw in (
            (_UNSIGNED, 12, "I;16", "I;12"),
            (_UNSIGNED, 16, f"I;16{b}", f"I;16{b}"),
            (_UNSIGNED, 32, "I", f"I;32{b}S"),
            (_SIGNED, 8, "L", "L"),
            (_SIGNED, 16, "I", f"I;16{b}S"),
            (_SIGNED, 32, "I", f"I;32{b}S"),
            (_FLOAT, 16, f"I;16{b}", f"I;16{b}"),
            (_FLOAT, 32, "F", f"F;32{b}F"),
            (_FLOAT, 64, "F", f"F;64{b}F"),
        ):
            for meaning in (_WHITE_IS_ZERO, 1):
                TiffImagePlugin.OPEN_INFO.setdefault((order, meaning, (kind,), 1, (bits,), ()), (mode, raw))


_teach_pillow()
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF", "F;64BF": "F;64NF"}


def numbers(image: Image.Image) -> Numbers:
    """Return what the numbers of a TIFF that Pillow opened are, and see to it that it reads them so.

    Raises `ImageError` for samples that Pillow would read wrongly.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    meaning = tags.get(_MEANING)
    if meaning == _YCBCR and image.mode == "YCbCr" and _subsampled(tags):
        raise ImageError("is a TIFF of subsampled YCbCr without compression, which is not understood: convert it")
    image.tile = [
        tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))  # libtiff swaps bytes itself
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
        else tile
        for tile in image.tile
    ]
    kind = {_SIGNED: "i", _FLOAT: "f"}.get(tags.get(_FORMAT, (_UNSIGNED,))[0], "u")
    return Numbers(kind, tags.get(_BITS, (1,))[0], inverted=meaning == _WHITE_IS_ZERO)


def undeclared_alpha(image: Image.Image) -> bool:
    """Check whether Pillow takes a fourth sample for transparency which the file does not call that."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    return image.mode == "RGBA" and _EXTRA not in image.tag_v2


def describe(data: bytes) -> str:
    """Return what the samples of a TIFF are, in words; "" where its first directory cannot be read."""
    found = next(_directories(data), None)
    if found is None:
        return ""
    tags = found[1]
    kind = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}
    bits = tags.get(_BITS, (1,))
    name = kind.get(tags.get(_FORMAT, (_UNSIGNED,))[0], "unknown")
    return (
        f"TIFF of {tags.get(_SAMPLES, len(bits))} samples of {'/'.join(map(str, sorted(set(bits))))} bits"
        f" ({name}, photometric interpretation {tags.get(_MEANING, 'not given')})"
    )


def chosen(data: bytes) -> tuple[bytes, int | None]:
    """Return the bytes of the image that a TIFF is about, and its orientation where they do not hold that.

    That is the image itself, where the first one is a smaller copy of it; of
    a raw file its largest embedded preview. Raises `ImageError` for one whose
    previews are smaller than what the network sees.
    """
    found = list(_directories(data))
    if not found:
        return data, None
    first = found[0][1].get(_ORIENTATION)
    if data[8:10] == b"CR" or any(_is_raw(tags) for _, tags in found):
        return _preview(data, found), first
    if _is_copy(found[0][1]):
        whole = [one for one in found if not _is_copy(one[1]) and _size(one[1])]
        if whole:
            return _starting_at(data, max(whole, key=lambda one: _size(one[1]))[0]), first
    return data, None


def _directories(data: bytes) -> Iterator[tuple[int, Directory]]:
    """Yield the offset and the tags of each directory, with those below it; stop where they are broken."""
    big = data[2] == 43 or data[3] == 43
    head = data[: 16 if big else 8]
    try:
        waiting = [TiffImagePlugin.ImageFileDirectory_v2(head).next]
        seen: set[int] = set()
        while waiting and len(seen) < _MOST:
            offset = waiting.pop(0)
            if offset in seen or not 0 < offset < len(data):
                continue
            seen.add(offset)
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file = io.BytesIO(data)
            file.seek(offset)
            tags.load(file)
            yield offset, tags
            below = tags.get(_SUBDIRECTORIES, ())
            waiting += [*(below if isinstance(below, tuple) else (below,)), tags.next]
    except Exception:  # Pillow's reader raises anything on broken tags; what was found is what there is
        return


def _is_raw(tags: Directory) -> bool:
    return (
        _DNG_VERSION in tags
        or tags.get(_MEANING) in _RAW_MEANINGS
        or (tags.get(_COMPRESSION) in _RAW_COMPRESSIONS and not _is_copy(tags))
    )


def _is_copy(tags: Directory) -> bool:
    """Check whether an image is declared to be a smaller copy of another one of its file, or a mask."""
    return bool(tags.get(_KIND, 0) & 0b101) or tags.get(_OLD_KIND) == 2


def _size(tags: Directory) -> int:
    return int(tags.get(_WIDTH, 0) * tags.get(_HEIGHT, 0))


def _subsampled(tags: Directory) -> bool:
    subsampling: Sequence[int] = tags.get(_SUBSAMPLING, (2, 2))
    plain = 3 * _size(tags)
    return tuple(subsampling) != (1, 1) and sum(tags.get(_LENGTHS, (plain,))) < plain


def _starting_at(data: bytes, offset: int) -> bytes:
    """Return a TIFF whose first directory is the one at `offset`."""
    at, width = (8, 8) if 43 in data[2:4] else (4, 4)
    return data[:at] + offset.to_bytes(width, "little" if data[:1] == b"I" else "big") + data[at + width :]


def _preview(data: bytes, found: Sequence[tuple[int, Directory]]) -> bytes:
    """Return the largest preview of a raw file, as a JPEG or a TIFF."""
    candidates = [one for offset, tags in found for one in _candidates(data, offset, tags)]
    (width, height), best = max(candidates, key=lambda one: one[0][0] * one[0][1], default=((0, 0), b""))
    if min(width, height) < _SMALLEST:
        has = f"whose largest embedded preview has {width}x{height} pixels" if best else "without an embedded preview"
        raise ImageError(f"is a camera's raw image {has}: convert it to JPEG or TIFF, with darktable-cli say")
    return best


def _candidates(data: bytes, offset: int, tags: Directory) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield the width, height and bytes of a preview: a JPEG that a directory points to, or what Pillow reads."""
    if tags.get(_MEANING) in _RAW_MEANINGS:
        return
    for at, length in ((_JPEG, _JPEG_LENGTH), (_OFFSETS, _LENGTHS)):
        place, size = tags.get(at), tags.get(length)
        if isinstance(place, tuple) and isinstance(size, tuple) and len(place) == len(size) == 1:
            place, size = place[0], size[0]
        if isinstance(place, int) and isinstance(size, int) and _JPEG_TABLES not in tags:
            preview = data[place : place + size]
            if found := jpeg.size(preview):
                yield found, preview
                return
    if tags.get(_MEANING) in (_RGB, _YCBCR) and max(tags.get(_BITS, (8,))) == 8:
        yield (tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)), _starting_at(data, offset)
