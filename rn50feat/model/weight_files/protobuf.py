"""Read protocol buffer messages, as far as checkpoints need them.

In: the bytes of a message. Out: its fields by number. The format is Google's
"Protocol Buffers: Encoding"; the numbers are explained where they are used.
"""

from __future__ import annotations

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read the unsigned number at `at`, seven bits per byte, and where it ends; raise `ValueError` if it does not."""
    number = 0
    for i, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise ValueError("a number does not end")


class Message:
    """The fields of a message that begins `offset` bytes into its file.

    Raises `ValueError`, here and from every method, for a malformed message.
    """

    def __init__(self, data: memoryview, offset: int = 0) -> None:
        self._data, self._offset = data, offset
        self._numbers: dict[int, int] = {}
        self._slices: dict[int, list[tuple[int, int]]] = {}  # start and end within data
        at = 0
        while at < len(data):
            tag, at = varint(data, at)
            at = self._take(tag >> 3, tag & 7, at)

    def _take(self, field: int, kind: int, at: int) -> int:
        if kind == _VARINT:
            self._numbers[field], end = varint(self._data, at)
        elif kind in (_FIXED32, _FIXED64):
            end = at + (4 if kind == _FIXED32 else 8)
            self._numbers[field] = int.from_bytes(self._data[at:end], "little")
        elif kind == _BYTES:
            size, at = varint(self._data, at)
            end = at + size
            self._slices.setdefault(field, []).append((at, end))
        else:
            raise ValueError(f"a field of unknown kind {kind}")
        if end > len(self._data):
            raise ValueError("a field ends beyond its message")
        return end

    def number(self, field: int) -> int:
        """Return an integer field, signed, 0 when absent."""
        number = self._numbers.get(field, 0)
        return number - (1 << 64) if number >> 63 else number

    def has(self, field: int) -> bool:
        """Check whether a field is present."""
        return field in self._numbers or field in self._slices

    def text(self, field: int) -> str:
        """Return a string field, "" when absent."""
        spans = self._slices.get(field, [(0, 0)])
        return str(self._data[slice(*spans[-1])], "utf-8")

    def messages(self, field: int) -> list[Message]:
        """Return the messages of a repeated field."""
        return [Message(self._data[start:end], self._offset + start) for start, end in self._slices.get(field, [])]

    def message(self, field: int) -> Message:
        """Return a message field, an empty message when absent."""
        return (self.messages(field) or [Message(self._data[:0])])[-1]

    def place(self, field: int) -> tuple[int, int]:
        """Return where in the file the content of a field of bytes begins, and its length; (0, 0) when absent."""
        spans = self._slices.get(field, [(0, 0)])
        if len(spans) > 1:
            raise ValueError("values in several pieces")
        return self._offset + spans[0][0], spans[0][1] - spans[0][0]
