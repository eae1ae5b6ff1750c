"""Compare the pixels of a store's images, and remember what came out.

In: references of images. Out: their relations. They are kept next to the
store, by the digests of both files, in ``out.relations``: a header, the CRC-32
of the rest, and 34 bytes for each pair. A file that is damaged or of another
version is ignored, and written anew.
"""

from __future__ import annotations

import logging
import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from rn50feat.durable.atomic import written
from rn50feat.durable.limits import cores
from rn50feat.engines.contract import EngineOptions, Failure
from rn50feat.engines.pool import DecoderPool
from rn50feat.errors import ExchangeError
from rn50feat.images.provenance import Preprocessing
from rn50feat.searching.alignment import VERSION, Compared, compare
from rn50feat.searching.groups import RELATIONS
from rn50feat.searching.guesses import SIDE, View
from rn50feat.sources.presence import readable
from rn50feat.sources.reference import Reference
from rn50feat.store.schedule import COMMIT_SECONDS

logger = logging.getLogger(__name__)

_HEADER = f"rn50feat relations {VERSION}\n".encode()
_RECORD = np.dtype([("first", "V16"), ("second", "V16"), ("relation", "u1"), ("contained", "u1")])
_VIEWS = 64  # in memory at once, about 3 MB each
_NAMES = (None, *RELATIONS)


class Relations:
    """Relations of images, from pixels or from the file of a `store`; to be closed.

    What is new is written every `COMMIT_SECONDS` and at the end: a kill costs
    no more than during a run. Images in remote storage are read only if `check`
    is set.
    """

    def __init__(self, store: Path, *, check: bool, options: EngineOptions = EngineOptions()) -> None:
        self._path, self._check = relations_file(store), check
        self._known = _read(self._path)
        self._kept, self._saved = len(self._known), time.monotonic()
        self._views: OrderedDict[bytes, View | None] = OrderedDict()
        self._workers = options.workers or cores()
        self._max_pixels = options.max_megapixels * 1_000_000
        self._pool: DecoderPool | None = None
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="comparing")

    def of(self, first: Reference, others: Sequence[Reference]) -> Iterator[Compared | None]:
        """Yield the relation of each of `others` to `first`; None where one of them cannot be read, or has changed."""
        for start in range(0, len(others), self._workers):
            part = others[start : start + self._workers]
            missing = [other for other in part if (first.digest, other.digest) not in self._known]
            if missing:
                views = self._viewed([first, *missing])
                pairs = [(other, views[first.digest], views[other.digest]) for other in missing]
                pairs = [(other, one, two) for other, one, two in pairs if one is not None and two is not None]
                made = self._threads.map(lambda pair: compare(pair[1], pair[2]), pairs)
                self._known |= {(first.digest, pair[0].digest): found for pair, found in zip(pairs, made)}
                if time.monotonic() - self._saved > COMMIT_SECONDS:
                    self._save()
            yield from (self._known.get((first.digest, other.digest)) for other in part)

    def _viewed(self, references: Sequence[Reference]) -> dict[bytes, View | None]:
        """Return small copies of images by their digests; None for one that cannot be read, or is another image now."""
        wanted = {one.digest: one for one in references if one.known_digest}
        found: dict[bytes, View | None] = {digest: self._views.get(digest) for digest in [b"", bytes(16), *wanted]}
        absent = [one for digest, one in wanted.items() if digest not in self._views]
        absent = [one for one in absent if readable(one.location, check=self._check)]
        for start in range(0, len(absent), self._workers + 1):
            found |= self._decoded(absent[start : start + self._workers + 1])
        for digest in wanted:
            self._views[digest] = found[digest]
            self._views.move_to_end(digest)
        while len(self._views) > _VIEWS:
            self._views.popitem(last=False)
        return found

    def _decoded(self, references: Sequence[Reference]) -> dict[bytes, View | None]:
        """Read and decode at most one image more than there are workers."""
        if self._pool is None:
            self._pool = DecoderPool(
                Preprocessing(crop=SIDE + 1),
                workers=self._workers,
                slots=self._workers + 1,
                max_pixels=self._max_pixels,
                content="view",
            )
        made = [outcome for future in self._pool.decode(0, references) for outcome in future.result()]
        views: dict[bytes, View | None] = {}
        for slot, (known, now) in enumerate(zip(references, made)):
            same = not isinstance(now, Failure) and now.digest == known.digest
            views[known.digest] = View.unpacked(self._pool.crops[slot].data.cast("B")) if same else None
        return views

    def close(self) -> None:
        """End the processes, and write what is still to be written."""
        self._threads.shutdown()
        if self._pool is not None:
            self._pool.close()
        self._save()

    def _save(self) -> None:
        """Write all relations, if some are new."""
        self._saved = time.monotonic()
        if len(self._known) > self._kept:
            self._kept = len(self._known)
            body = b"".join(
                first + second + bytes((_NAMES.index(found.relation), found.contained))
                for (first, second), found in self._known.items()
            )
            try:
                with written([self._path]) as (file,):
                    file.write(_HEADER + zlib.crc32(body).to_bytes(4, "little") + body)
            except ExchangeError as error:
                logger.warning("relations are not kept for the next time: %s", error)
                self._kept = sys.maxsize  # once is enough


def relations_file(store: Path) -> Path:
    """Return the path of the file for a store's relations."""
    return store.with_suffix(".relations")


def _read(path: Path) -> dict[tuple[bytes, bytes], Compared]:
    """Read a file of relations; {} where there is none, or it is damaged."""
    with suppress(OSError, ValueError, IndexError):
        data = path.read_bytes()
        checksum, body = data[len(_HEADER) :][:4], data[len(_HEADER) + 4 :]
        if data.startswith(_HEADER) and zlib.crc32(body).to_bytes(4, "little") == checksum:
            return {
                (first.tobytes(), second.tobytes()): Compared(_NAMES[relation], bool(contained))
                for first, second, relation, contained in np.frombuffer(body, _RECORD)
            }
    return {}
