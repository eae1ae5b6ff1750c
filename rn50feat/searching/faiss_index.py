"""A FAISS index whose ids are those of a store.

In: vectors as `exact.prepared` gives them, with their ids. Out: the ids of
the likely nearest, and the bytes of an ordinary FAISS file.
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
_BUFFER = 1 << 20  # bytes that FAISS hands over at once when it writes
# RaBitQ compares the query in so many bits: by 4 recall is 0.01 lower before re-ranking, unquantised it takes
# 100 times as long (24 ms a query at nprobe 8, with 8 bits 0.3).
_QUERY_BITS = 8


class FaissIndex:
    """An index that finds candidates. Every method raises `IndexingError` for what FAISS cannot do."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._ivf = faiss.try_extract_index_ivf(index)

    @classmethod
    def make(cls, factory: str, metric: str) -> FaissIndex:
        """Return an empty index for `metric` by a FAISS factory string."""
        with _told(f"{factory} is no index that FAISS makes"):
            index = faiss.index_factory(WIDTH, factory, _METRICS[metric])
            made = cls(index)
            if made._ivf is None and not isinstance(index, faiss.IndexIDMap):
                made = cls(faiss.IndexIDMap2(index))  # the other kinds take no ids
                index.this.disown()  # the wrapper frees it
                made._index.own_fields = True
            elif hasattr(ivf := faiss.downcast_index(made._ivf), "qb"):
                ivf.qb = _QUERY_BITS
            return made

    @classmethod
    def load(cls, path: Path, *, mapped: bool) -> FaissIndex:
        """Read a FAISS file, or map it: then only what a search touches is read, and it cannot change."""
        with _told(f"{path} is no index that FAISS reads"):
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0))

    def save(self, write: Callable[[bytes], None]) -> None:
        """Hand the bytes of the FAISS file to `write`, piece by piece; what that raises comes out."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, _BUFFER))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def trained(self) -> bool:
        """Whether vectors can be added."""
        return bool(self._index.is_trained)

    @property
    def lists(self) -> int:
        """How many inverted lists there are; 0 for an index without."""
        return 0 if self._ivf is None else int(self._ivf.nlist)

    @property
    def row_size(self) -> int:
        """About how many bytes a row takes, its id included."""
        try:
            return int(self._index.sa_code_size()) + 8
        except RuntimeError:  # not every kind tells
            return 4 * WIDTH + 8

    def probe(self, lists: int) -> None:
        """Look into so many lists for each query (nprobe); the file keeps that."""
        self._ivf.nprobe = lists

    def train(self, vectors: NDArray[np.float32]) -> None:
        """Learn centroids and codes from `vectors`, (n, 2048)."""
        with _told("this index cannot be trained"):
            self._index.train(vectors)

    def add(self, ids: Rows, vectors: NDArray[np.float32]) -> None:
        """Add `vectors`, (n, 2048)."""
        with _told("this index takes no rows with ids"):
            self._index.add_with_ids(vectors, ids)

    def remove(self, ids: Rows, remedy: str) -> None:
        """Remove the vectors of `ids`; `remedy` is what helps where this kind of index cannot do that."""
        with _told("rows cannot be removed from an index of this kind", f": {remedy}"):
            self._index.remove_ids(ids)

    def ids(self) -> Rows:
        """Return the ids of all rows, in no order."""
        if self._ivf is None:
            return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)
        lists = self._ivf.invlists
        parts = []
        for number in range(self._ivf.nlist):
            if size := lists.list_size(number):
                parts.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
        return np.concatenate([np.empty(0, np.int64), *parts])

    def candidates(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return the ids of the `count` likely nearest rows for each query, (m, count); -1 where there are no more."""
        with _told("the index cannot be searched"):
            return np.asarray(self._index.search(queries, count)[1], np.int64)


@contextmanager
def _told(fault: str, remedy: str = ": give another --factory") -> Iterator[None]:
    """Tell of what FAISS raises, which is a RuntimeError or an AssertionError for almost everything."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        cause = str(error).rpartition(": ")[2].strip().splitlines()
        raise IndexingError(f"{fault} ({cause[0] if cause else type(error).__name__}){remedy}") from error
    except MemoryError as error:
        raise IndexingError(f"{fault} (there is not enough memory){remedy}") from error
