"""Wrap a FAISS index that is keyed by a store's ids.

In: vectors from `exact.prepared`, with their ids. Out: the ids of likely
neighbours, and the bytes of an ordinary FAISS file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import IndexingError
from rn50feat.searching.exact import Rows
from rn50feat.store.layout import WIDTH

_METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
_BUFFER = 1 << 20  # bytes that FAISS passes on at once when it writes
# RaBitQ quantises the query to this many bits: with 4, recall before re-ranking is 0.01 lower; unquantised takes
# 100 times as long (24 ms per query at nprobe 8, against 0.3 with 8 bits).
_QUERY_BITS = 8
_OTHER_FACTORY = "use another --factory"
_REBUILD = "rebuild it with rn50feat index --rebuild, or ignore it: search --exact, duplicates --scan"


class FaissIndex:
    """An index that finds candidates. Every method raises `IndexingError` if FAISS cannot do it."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._ivf = faiss.try_extract_index_ivf(index)

    @classmethod
    def make(cls, factory: str, metric: str) -> FaissIndex:
        """Create an empty index for `metric` from a FAISS factory string."""
        with _indexing_errors(f"FAISS cannot make the index {factory}", _OTHER_FACTORY):
            index = faiss.index_factory(WIDTH, factory, _METRICS[metric])
            made = cls(index)
            if made._ivf is None and not isinstance(index, faiss.IndexIDMap):
                made = cls(faiss.IndexIDMap2(index))  # other kinds cannot store ids
                index.this.disown()  # the wrapper frees it
                made._index.own_fields = True
            elif hasattr(ivf := faiss.downcast_index(made._ivf), "qb"):
                ivf.qb = _QUERY_BITS
            return made

    @classmethod
    def load(cls, path: Path, *, mapped: bool) -> FaissIndex:
        """Read a FAISS file, or map it: a mapped one reads only what a search needs, and is read-only."""
        with _indexing_errors(f"FAISS cannot read {path}", _REBUILD):
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0))

    def save(self, write: Callable[[bytes], None]) -> None:
        """Pass the bytes of the FAISS file to `write`, piece by piece; errors from `write` propagate."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, _BUFFER))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def trained(self) -> bool:
        """Whether vectors can be added."""
        return bool(self._index.is_trained)

    @property
    def lists(self) -> int:
        """The number of inverted lists; 0 for an index without."""
        return 0 if self._ivf is None else int(self._ivf.nlist)

    @property
    def compares_all(self) -> bool:
        """Whether a search compares the query with every row: all lists are probed, or there are none."""
        if self._ivf is not None:
            return bool(self._ivf.nprobe >= self._ivf.nlist)
        inner = self._index.index if isinstance(self._index, faiss.IndexIDMap) else self._index
        return isinstance(faiss.downcast_index(inner), faiss.IndexFlatCodes)  # flat, or quantised row by row

    @property
    def row_size(self) -> int:
        """The approximate size of a row in bytes, including its id."""
        try:
            return int(self._index.sa_code_size()) + 8
        except RuntimeError:  # not every kind knows
            return 4 * WIDTH + 8

    def probe(self, lists: int) -> None:
        """Probe this many lists per query (nprobe); the file stores the number."""
        self._ivf.nprobe = lists

    def train(self, vectors: NDArray[np.float32]) -> None:
        """Learn centroids and codes from `vectors`, (n, 2048)."""
        with _indexing_errors("FAISS cannot train this index", _OTHER_FACTORY):
            self._index.train(vectors)

    def add(self, ids: Rows, vectors: NDArray[np.float32]) -> None:
        """Add `vectors`, (n, 2048)."""
        with _indexing_errors("FAISS cannot add rows with ids to this index", _OTHER_FACTORY):
            self._index.add_with_ids(vectors, ids)

    def remove(self, ids: Rows, remedy: str) -> None:
        """Remove the vectors of `ids`; `remedy` is the fix to suggest if this kind of index does not support that."""
        with _indexing_errors("rows cannot be removed from an index of this kind", remedy):
            self._index.remove_ids(ids)

    def ids(self) -> Rows:
        """Return the ids of all rows, unordered."""
        if self._ivf is None:
            return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)
        lists = self._ivf.invlists
        parts = []
        for number in range(self._ivf.nlist):
            if size := lists.list_size(number):
                parts.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
        return np.concatenate([np.empty(0, np.int64), *parts])

    def candidates(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find `count` likely neighbours for each query, nearest first: their ids, (m, count), padded with -1.

        Also returns about how near each is, (m, count): the product with the query, or minus the squared distance.
        """
        with _indexing_errors("FAISS cannot search the index", _REBUILD):
            measures, ids = self._index.search(queries, count)
            sign = -1 if self._index.metric_type == faiss.METRIC_L2 else 1
            return np.asarray(ids, np.int64), sign * measures


@contextmanager
def _indexing_errors(fault: str, remedy: str) -> Iterator[None]:
    """Turn FAISS's errors into `IndexingError`; it raises RuntimeError or AssertionError for almost everything."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        cause = str(error).rpartition(": ")[2].strip().splitlines()
        raise IndexingError(f"{fault} ({cause[0] if cause else type(error).__name__}): {remedy}") from error
    except MemoryError as error:
        raise IndexingError(f"{fault} (not enough memory): {remedy}") from error
