"""Show one image on a page: a thumbnail that opens large in place, with what is known of its file.

Takes thumbnails in the order of the images, and yields a figure for each.
Opening needs no script: a link makes the figure the target of the address, and
the style sheet lets a target fill the window. Only then does a browser load
the file itself, if it is on the reader's machine.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

from rn50feat.errors import SourceError, count
from rn50feat.errors import size as bytes_in_words
from rn50feat.images.decoding import has_image_suffix
from rn50feat.pages.page import escape
from rn50feat.pages.thumbnails import Thumbnail
from rn50feat.searching.groups import measured
from rn50feat.sources.location import at
from rn50feat.sources.presence import file_url
from rn50feat.store.paths import stored_path

_SUFFIX = 8  # characters, at most: a longer last part is no suffix, and may wrap


@dataclass(frozen=True)
class Field:
    """A labelled fact of an image; with `large` it is shown only where the image is large."""

    name: str
    value: str
    large: bool = False


class Cards:
    """The images of a page, which is written to `page`; `thumbnails` are theirs, in order."""

    def __init__(self, thumbnails: Iterator[Thumbnail], page: Path) -> None:
        self._thumbnails, self._page = thumbnails, Path(os.path.realpath(page))
        self._count = 0

    def card(self, label: str, path: str, location: str, caption: str = "", *, size: int | None = None) -> str:
        """Mark up the next image with a `caption`, its path and what is known of its file.

        The file is read, and linked, if a `location` is given. `size` is what
        is known of a file that is gone.
        """
        thumbnail = next(self._thumbnails)
        self._count += 1
        name = f"image-{self._count}"
        # A browser would run a file with a name such as x.html, even if it is an image too.
        url = link(location, self._page) if has_image_suffix(location) else ""
        fields = list(file_fields(location)) if location else []
        if size is not None and not fields:
            fields = [Field("size", length(size))]
        shown = f'<span class="frame blank">The file {escape(thumbnail.reason)}</span>'
        close = ""
        if thumbnail.jpeg:
            image = f'<img src="{data_url(thumbnail.jpeg)}" alt="{escape(f"{label}: {path}")}" decoding="async">'
            whole = f'<img class="whole" src="{escape(url)}" alt="" loading="lazy">' if url else ""
            shown = f'<a class="frame" href="#{name}">{image}{whole}</a>'
            close = f'<a class="close" href="#{name}-path"><span>Close</span></a>\n'
        opened = f'<p class="large"><a href="{escape(url)}">Open the file</a></p>\n' if url and close else ""
        return (
            f'<figure id="{name}">{shown}\n{close}<figcaption>\n{caption}{_listed(fields)}'
            f'<p class="path" id="{name}-path">{marked(path)}</p>\n{opened}</figcaption>\n</figure>'
        )


def data_url(jpeg: bytes) -> str:
    """Return the URL of a JPEG within a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def link(location: str, page: Path) -> str:
    """Return the URL of a file on this machine for a link on `page`, "" for anything else.

    It is relative for a file below the page's folder, or below the folder that holds it.
    """
    url = file_url(location)
    path = stored_path(page, location)
    if not url or os.path.isabs(path):
        return url
    return ("" if path.startswith("../") else "./") + quote(os.fsencode(path))


def file_fields(location: str) -> Iterator[Field]:
    """Yield size, dimensions and date of a file as it is now, as far as they can be read."""
    try:
        file = at(location).stat()
    except (SourceError, ValueError):
        return
    yield Field("size", length(file.size))
    if (found := measured(location, file.size)) is not None:
        yield Field("pixels", f"{found.width}×{found.height}")
    try:
        date = datetime.fromtimestamp(file.mtime_ns // 10**9, timezone.utc)
    except (OverflowError, ValueError, OSError):  # no file system means such a time
        return
    if file.mtime_ns > 0:
        yield Field("date", f"{date:%Y-%m-%d %H:%M} UTC", large=True)


def length(size: int) -> str:
    """Format the size of a file."""
    return bytes_in_words(size) if size >= 1000 else count(size, "byte")


def marked(path: str) -> str:
    """Mark up a path: its last part stands out, and it is isolated from other text's direction.

    It wraps after separators, and not inside a suffix.
    """
    folder, slash, name = path.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > _SUFFIX or " " in suffix:
        stem, dot, suffix = name, "", ""
    end = f'<span class="suffix">{escape(dot + suffix)}</span>' if dot else ""
    return f'<bdi dir="ltr"><span class="folder">{_breaking(folder + slash)}</span>{_breaking(stem)}{end}</bdi>'


def _breaking(text: str) -> str:
    """Escape a text, and let it wrap after its separators."""
    parts = re.findall(r"[^/_.-]*[/_.-]*", text)
    return "<wbr>".join(escape(part) for part in parts if part)


def _listed(fields: list[Field]) -> str:
    def item(field: Field) -> str:
        large = ' class="large"' if field.large else ""
        return f"<div{large}><dt>{field.name}</dt> <dd>{field.value}</dd></div>\n"

    return f'<dl class="fields">{"".join(map(item, fields))}</dl>\n' if fields else ""
