"""Escape what a reader cannot see in a name, on terminals and on pages alike.

Takes a name and returns one line of text that shows every character of it.
"""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, and the marks that change the direction of text (and could show
# gpj.exe as exe.jpg). Backslashes too, so that no name can pass for an escape. The joiners in emoji stay.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\\\\\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_NO_TEXT = re.compile("[\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": "\\\\"}


def one_line(name: str) -> str:
    r"""Escape invisible characters in `name`, as ``\n``, ``\x1b`` or ``\u202e``, and double its backslashes.

    Bytes that are not UTF-8 stay surrogate escapes.
    """
    return _UNSEEN.sub(_spelled_out, name)


def as_text(name: str) -> str:
    r"""Escape `name` as `one_line` does, and bytes that are not UTF-8 as ``\xff``."""
    return _NO_TEXT.sub(_spelled_out, one_line(name))


def _spelled_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte, by Python's surrogateescape
        code -= 0xDC00
    elif code > 0x7F:
        return f"\\u{code:04x}"
    return _SHORT.get(match[0], f"\\x{code:02x}")
