"""Read what a TIFF declares: which of its images is the main one, and the format of its samples.

In: the bytes of a TIFF, or of a camera's raw file based on it. Out: the bytes
to decode (for a raw image, its largest embedded preview), and the sample
format of an image that Pillow opened. Pillow by itself reads the first
directory, and ignores signs, whether zero is white in more than 8 bits, and
whether a fourth sample is transparency.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, TiffImagePlugin

from rn50feat.errors import ImageError
from rn50feat.images import jpeg
from rn50feat.images.sample_format import SampleFormat

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _MEANING, _OFFSETS, _ORIENTATION = 256, 257, 258, 259, 262, 273, 274
_SAMPLES, _LENGTHS, _PLANAR, _SUBDIRECTORIES, _EXTRA, _FORMAT = 277, 279, 284, 330, 338, 339
_KIND, _OLD_KIND, _JPEG_TABLES, _JPEG, _JPEG_LENGTH, _SUBSAMPLING = 254, 255, 347, 513, 514, 530
_DNG_VERSION = 50706
_WHITE_IS_ZERO, _RGB, _YCBCR = 0, 2, 6
_RAW_MEANINGS = (32803, 34892)  # a colour filter array, and linear raw
_RAW_COMPRESSIONS = (32767, 32769, 32770, 34713, 65535)  # Sony, Epson, Samsung, Nikon, Pentax
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_MOST = 64  # directories that are read
_SMALLEST = 224  # pixels on the shorter side of a preview: the size of the network's input

Directory = Any  # Pillow's ImageFileDirectory_v2, a mapping from tags to values


def _teach_pillow() -> None:
    """Let Pillow open what it could read but does not: other byte orders, white as zero, floats of other sizes.

    `sample_format` says how to interpret the result.
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


def sample_format(image: Image.Image) -> SampleFormat:
    """Read the sample format of a TIFF that Pillow opened, and make Pillow read the samples accordingly.

    Raises `ImageError` for samples that Pillow would read wrongly.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    meaning = tags.get(_MEANING)
    if meaning == _YCBCR and image.mode == "YCbCr" and _subsampled(tags):
        raise ImageError(
            "is a TIFF with uncompressed subsampled YCbCr, which is not supported: convert it to another format"
        )
    if tags.get(_PLANAR) == 2 and tags.get(_COMPRESSION, 1) == 1 and set(tags.get(_BITS, (1,))) == {16}:
        _read_wide_planes(image)
    image.tile = [
        tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))  # libtiff swaps bytes itself
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
        else tile
        for tile in image.tile
    ]
    kind = {_SIGNED: "i", _FLOAT: "f"}.get(tags.get(_FORMAT, (_UNSIGNED,))[0], "u")
    return SampleFormat(kind, tags.get(_BITS, (1,))[0], inverted=meaning == _WHITE_IS_ZERO)


def _read_wide_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Make Pillow read uncompressed planes of 16 bits, which it takes for planes of bytes."""
    if image.mode == "CMYK":
        raise ImageError(
            "is a TIFF with uncompressed 16-bit CMYK in planes, which is not supported: convert it to another format"
        )
    if image.mode in ("RGB", "RGBA"):
        order = ";16B" if image.tag_v2.prefix == b"MM" else ";16L"
        image.tile = [
            tile._replace(args=(tile.args[0] + order, *tile.args[1:]))
            for tile in image.tile
            if isinstance(tile.args, tuple)
        ]


def undeclared_alpha(image: Image.Image) -> bool:
    """Check whether Pillow takes a fourth sample for transparency though the file does not declare it so."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    return image.mode == "RGBA" and _EXTRA not in image.tag_v2


def describe(data: bytes) -> str:
    """Describe the samples of a TIFF in words; "" if its first directory cannot be read."""
    first = next(_directories(data), None)
    if first is None:
        return ""
    tags = first[1]
    kind = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}
    bits = tags.get(_BITS, (1,))
    name = kind.get(tags.get(_FORMAT, (_UNSIGNED,))[0], "unknown")
    return (
        f"TIFF with {tags.get(_SAMPLES, len(bits))} samples of {'/'.join(map(str, sorted(set(bits))))} bits"
        f" ({name}, photometric interpretation {tags.get(_MEANING, 'not given')})"
    )


def main_image(data: bytes) -> tuple[bytes, int | None]:
    """Return the bytes of a TIFF's main image, and its orientation if those bytes lack it.

    The main image is the full-size one if the first is a smaller copy, and
    the largest embedded preview of a raw file. Raises `ImageError` for a raw
    file whose previews are smaller than the network's input.
    """
    directories = list(_directories(data))
    if not directories:
        return data, None
    orientation = directories[0][1].get(_ORIENTATION)
    if data[8:10] == b"CR" or any(_is_raw(tags) for _, tags in directories):
        return _preview(data, directories), orientation
    if _is_copy(directories[0][1]):
        whole = [one for one in directories if not _is_copy(one[1]) and _size(one[1])]
        if whole:
            return _starting_at(data, max(whole, key=lambda one: _size(one[1]))[0]), orientation
    return data, None


def _directories(data: bytes) -> Iterator[tuple[int, Directory]]:
    """Yield the offset and tags of each directory and of its subdirectories; stop at a broken one."""
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
    except Exception:  # Pillow's reader raises anything on broken tags; the directories before them are good
        return


def _is_raw(tags: Directory) -> bool:
    return (
        _DNG_VERSION in tags
        or tags.get(_MEANING) in _RAW_MEANINGS
        or (tags.get(_COMPRESSION) in _RAW_COMPRESSIONS and not _is_copy(tags))
    )


def _is_copy(tags: Directory) -> bool:
    """Check whether an image is declared to be a mask or a smaller copy of another one in its file."""
    return bool(tags.get(_KIND, 0) & 0b101) or tags.get(_OLD_KIND) == 2


def _size(tags: Directory) -> int:
    return int(tags.get(_WIDTH, 0) * tags.get(_HEIGHT, 0))


def _subsampled(tags: Directory) -> bool:
    subsampling: Sequence[int] = tags.get(_SUBSAMPLING, (2, 2))
    plain = 3 * _size(tags)
    return tuple(subsampling) != (1, 1) and sum(tags.get(_LENGTHS, (plain,))) < plain


def _starting_at(data: bytes, offset: int) -> bytes:
    """Make the directory at `offset` the first one of a TIFF."""
    at, width = (8, 8) if 43 in data[2:4] else (4, 4)
    return data[:at] + offset.to_bytes(width, "little" if data[:1] == b"I" else "big") + data[at + width :]


def _preview(data: bytes, directories: Sequence[tuple[int, Directory]]) -> bytes:
    """Extract the largest preview of a raw file, as a JPEG or a TIFF."""
    candidates = [one for offset, tags in directories for one in _candidates(data, offset, tags)]
    (width, height), best = max(candidates, key=lambda one: one[0][0] * one[0][1], default=((0, 0), b""))
    if min(width, height) < _SMALLEST:
        has = f"whose largest embedded preview has {width}x{height} pixels" if best else "without an embedded preview"
        raise ImageError(f"is a raw camera image {has}: convert it to JPEG or TIFF, for example with darktable-cli")
    return best


def _candidates(data: bytes, offset: int, tags: Directory) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield the (width, height) and bytes of a preview: a JPEG that a directory points to, or one that Pillow reads."""
    if tags.get(_MEANING) in _RAW_MEANINGS:
        return
    for at, length in ((_JPEG, _JPEG_LENGTH), (_OFFSETS, _LENGTHS)):
        place, size = tags.get(at), tags.get(length)
        if isinstance(place, tuple) and isinstance(size, tuple) and len(place) == len(size) == 1:
            place, size = place[0], size[0]
        if isinstance(place, int) and isinstance(size, int) and _JPEG_TABLES not in tags:
            preview = data[place : place + size]
            if dimensions := jpeg.size(preview):
                yield dimensions, preview
                return
    if tags.get(_MEANING) in (_RGB, _YCBCR) and max(tags.get(_BITS, (8,))) == 8:
        yield (tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)), _starting_at(data, offset)
