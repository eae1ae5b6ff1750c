"""Spell out what a name may hold and a reader cannot see, on terminals and on pages alike.

In: a name. Out: one line of text that shows what it is.
"""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, and the marks that turn the direction of a text (and could show
# gpj.exe as exe.jpg). Backslashes too, so that an escape cannot be told by a name. The joiners that emoji are made
# with stay.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\\\\\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_NO_TEXT = re.compile("[\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": "\\\\"}
_LONG = {short[1]: character for character, short in _SHORT.items()}
_SPELLED_OUT = re.compile(r"\\(?:([ntr\\])|x([01][0-9a-f]|7f)|u([0-9a-f]{4}))")


def one_line(name: str) -> str:
    r"""Return `name` with what cannot be seen spelled out: ``\n``, ``\x1b``, ``\u202e``, and backslashes doubled.

    Bytes that are not UTF-8 stay what they are, surrogate escapes.
    """
    return _UNSEEN.sub(_spelled_out, name)


def as_it_was(line: str) -> str:
    """Return the name of which `one_line` made `line`."""
    return _SPELLED_OUT.sub(lambda match: _LONG.get(match[1]) or chr(int(match[2] or match[3], 16)), line)


def as_text(name: str) -> str:
    r"""Return `name` as `one_line` does, and a byte that is not UTF-8 as ``\xff``."""
    return _NO_TEXT.sub(_spelled_out, one_line(name))


def _spelled_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte, by Python's surrogateescape
        code -= 0xDC00
    elif code > 0x7F:
        return f"\\u{code:04x}"
    return _SHORT.get(match[0], f"\\x{code:02x}")
