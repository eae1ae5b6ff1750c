"""Frame every HTML page: one file that needs no network, runs no script but its own and trusts no name.

Takes a title, facts, and the pieces of a body, and yields the pieces of a page,
or writes them to a file. Its content security policy allows its own style sheet and script,
the embedded images and, if asked for, those in files, and nothing else; it
follows the reader's choice of light or dark.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from rn50feat.durable import atomic
from rn50feat.errors import PageError
from rn50feat.escape import as_text

SUFFIXES = (".html", ".htm")


def escape(name: str) -> str:
    r"""Escape `name` for HTML elements and quoted attributes.

    Invisible characters are escaped too, as ``\n``, ``\x1b`` or ``\u202e``, and
    bytes that are not UTF-8 as ``\xff``.
    """
    return html.escape(as_text(name))


def style(name: str) -> str:
    """Load a style sheet or a script of this package, such as page.css."""
    return resources.files("rn50feat.pages").joinpath(name).read_text(encoding="utf-8")


def page(
    title: str,
    body: Iterable[str],
    *,
    facts: Iterable[tuple[str, str]] = (),
    css: str = "",
    images: str = "data:",
    script: str = "",
) -> Iterator[str]:
    """Yield the pieces of a page: its title, `facts` (name, value), then the pieces of `body`.

    Title and facts are plain text, `body` is HTML without scripts or style
    attributes: `css` is for what page.css lacks, `images` says where images
    may be, as in a content security policy, and `script` runs at the end.
    """
    sheet = style("page.css") + css
    policy = f"default-src 'none'; img-src {images}; style-src {_hash(sheet)}; base-uri 'none'; form-action 'none'"
    policy += f"; script-src {_hash(script)}" if script else ""
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{sheet}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n'
        f"<header>\n<h1>{escape(title)}</h1>\n"
    )
    if listed := "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in facts):
        yield f'<dl class="facts">\n{listed}</dl>\n'
    yield '</header>\n<main id="content" tabindex="-1">\n'
    yield from body
    yield "</main>\n" + (f"<script>{script}</script>\n" if script else "") + "</body>\n</html>\n"


def _hash(text: str) -> str:
    """Identify a style sheet or a script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def target(path: Path) -> Path:
    """Resolve links in the `path` of a page; raise `PageError` if it cannot be written.

    The suffix must be that of a page, so that an image or a store, named by
    mistake, is never replaced.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise PageError(f"{path} does not end in .html: name the page to write, as in results.html")
    place = Path(os.path.realpath(path))
    if not os.path.isdir(place.parent):
        raise PageError(f"{path} cannot be written: there is no folder {place.parent}: create it, or name another")
    if os.path.exists(place) and not os.path.isfile(place):
        raise PageError(f"{path} is not a regular file: name another")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise PageError(f"{path} cannot be written (Permission denied): name a file in a folder that you may write to")
    return place


def save(path: Path, pieces: Iterable[str]) -> None:
    """Write the pieces of a page to a file, as a whole or not at all; raise `PageError` if that fails."""
    target(path)
    with atomic.written([path], kind=PageError) as (file,):
        file.writelines(piece.encode() for piece in pieces)
