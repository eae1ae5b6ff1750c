"""Decide which failed files to try again although they have not changed.

In: a failure from the ledger, and the limits of this run. Out: whether its
cause has changed: an extra that was not installed, a format that was not
supported, a limit that follows from ``--max-megapixels``, or ``--damaged``.
The cause is in the reason itself, which survives merges and is read by all
versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rn50feat.engines.allowance import gigabytes, largest_file, needed, seconds
from rn50feat.images import kinds
from rn50feat.store.reader import FailureRecord

# The words are those of `kinds.unsupported`, `images`, `errors.TooLargeError`, `worker`, `pool`
# and `damage_notes`.
_FORMAT = re.compile(r"is (.+?), which (?:needs|rn50feat does not read): ")
_PIXELS = re.compile(r"is too large, (\d+)x(\d+) ")
_BYTES = re.compile(r"has ([\d,]+) bytes, more than an image may have")
_MEMORY = re.compile(r"needs more memory to decode than one image may take \(([\d.e+]+) GB\)")
_SECONDS = re.compile(r"took longer to decode than one image may \((\d+) s\)")
_DAMAGED = re.compile(r"is damaged: .*: --damaged keep gives it a row$")
_UNKNOWN = re.compile(r"(?:memory .*one picture is allowed|than one picture may)$")  # limits that early versions kept


@dataclass(frozen=True)
class Attempts:
    """Which failures to try again when images may have `max_pixels`; all of them with `all_again`.

    `damaged` says what happens to damaged images: keep or skip.
    """

    max_pixels: int
    all_again: bool = False
    damaged: str = "keep"

    def another(self, failure: FailureRecord) -> bool:
        """Check whether another attempt at an unchanged file may succeed."""
        reason, most = failure.reason, self.max_pixels
        if self.all_again or _UNKNOWN.search(reason):
            return True
        if _DAMAGED.match(reason):
            return self.damaged == "keep"
        if match := _FORMAT.match(reason):
            return kinds.supports(match[1])
        if match := _PIXELS.match(reason):
            return int(match[1]) * int(match[2]) <= most
        if match := _BYTES.match(reason):
            return int(match[1].replace(",", "")) <= largest_file(most)
        if match := _MEMORY.match(reason):
            return float(match[1]) < float(gigabytes(needed(most)))
        if match := _SECONDS.match(reason):
            return int(match[1]) < int(seconds(most))
        return False
