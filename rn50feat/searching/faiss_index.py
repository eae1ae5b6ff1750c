"""Wrap a FAISS index that is keyed by a store's ids.

In: vectors from `exact.prepared`, with their ids. Out: the ids of likely
neighbours, and the bytes of an ordinary FAISS file. An index with inverted
lists, which come last in its file, can be read and written without having them
in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import IndexingError
from rn50feat.searching import inverted_lists
from rn50feat.searching.best import NO_ROWS, Rows
from rn50feat.searching.inverted_lists import Lists, Write
from rn50feat.store.layout import WIDTH

_METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
_BUFFER = 1 << 20  # bytes that FAISS passes on at once when it writes
# RaBitQ quantises the query to this many bits: with 4, recall before re-ranking is 0.01 lower; unquantised takes
# 100 times as long (24 ms per query at nprobe 8, against 0.3 with 8 bits).
_QUERY_BITS = 8
_DECODED = 4096  # rows of the sample that are float32 at once
_OTHER_FACTORY = "use another --factory"
_REBUILD = "rebuild it with rn50feat index --rebuild, or ignore it: search --exact, duplicates --scan"


class FaissIndex:
    """An index that finds candidates. Every method raises `IndexingError` if FAISS cannot do it."""

    def __init__(self, index: Any, path: Path | None = None) -> None:
        self._index, self._path = index, path
        self._ivf = faiss.try_extract_index_ivf(index)

    @classmethod
    def make(cls, factory: str, metric: str) -> FaissIndex:
        """Create an empty index for `metric` from a FAISS factory string."""
        with _indexing_errors(f"FAISS cannot make the index {factory}", _OTHER_FACTORY):
            index = faiss.index_factory(WIDTH, factory, _METRICS[metric])
            made = cls(index)
            if made._ivf is not None and not made.lists:
                raise RuntimeError("an index needs at least one list")
            made._require_ids(_OTHER_FACTORY)
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
            read = cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0), path)
        if read.mapped:
            read._inverted.prefetch_nthread = 0  # else 32 threads read a query's lists before it does: half of its time
        return read

    @classmethod
    def load_to_change(cls, path: Path) -> FaissIndex:
        """Map a FAISS file if its lists come last, so that `take_lists` works; else read it."""
        mapped = cls.load(path, mapped=True)
        mapped._require_ids(_REBUILD)
        return mapped if mapped.lists_last else cls.load(path, mapped=False)

    def _require_ids(self, remedy: str) -> None:
        """Refuse inverted lists whose ids are kept elsewhere: removing rows would mix these up."""
        if self._ivf is not None and isinstance(self._index, faiss.IndexIDMap):
            raise IndexingError(f"an index with inverted lists has ids of its own, without IDMap: {remedy}")

    def save(self, write: Write) -> None:
        """Pass the bytes of the FAISS file to `write`, piece by piece; errors from `write` propagate."""
        if self.mapped:
            self.save_merged(write, [self.mapped_lists()], NO_ROWS)
        else:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, _BUFFER))

    def save_merged(self, write: Write, sources: Sequence[Lists], wanted: Rows) -> None:
        """Save the index like `save`, but with the rows of `sources` in its lists; see `inverted_lists.merge`."""
        self._save_until_lists(write, sum(int(source.kept.sum()) for source in sources))
        inverted_lists.merge(write, sources, wanted)

    def _save_until_lists(self, write: Write, rows: int) -> bool:
        """Pass what precedes the lists in the file of an index of `rows` rows to `write`; return whether they are last.

        These are FAISS's own bytes of the index with empty lists.
        """
        ivf, counts, held = self._ivf, (self._index.ntotal, self._ivf.ntotal), bytearray()
        section = inverted_lists.empty_section(self.lists, ivf.code_size)

        def pass_on(piece: bytes) -> None:
            held.extend(piece)
            known = max(0, len(held) - len(section))
            write(bytes(held[:known]))
            del held[:known]

        lists, empty = ivf.invlists, faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
        try:
            ivf.invlists, self._index.ntotal, ivf.ntotal = empty, rows, rows
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(pass_on, _BUFFER))
        finally:
            ivf.invlists, self._index.ntotal, ivf.ntotal = lists, *counts
        return held == section

    @property
    def mapped(self) -> bool:
        """Whether the inverted lists are in a mapped file."""
        return self._ivf is not None and isinstance(self._inverted, faiss.OnDiskInvertedLists)

    @property
    def lists_last(self) -> bool:
        """Whether the index has inverted lists, and they come last in its file: rows can be added in parts."""
        ordinary = (faiss.ArrayInvertedLists, faiss.OnDiskInvertedLists)
        if self._ivf is None or not isinstance(self._inverted, ordinary):
            return False
        return self._save_until_lists(lambda piece: None, len(self))

    @property
    def _inverted(self) -> Any:
        return faiss.downcast_InvertedLists(self._ivf.invlists)

    def mapped_lists(self) -> Lists:
        """Return where the lists of an index from a mapped file are."""
        assert self._path is not None
        places = [self._inverted.lists.at(number) for number in range(self.lists)]
        sizes, offsets = (np.array([getattr(one, name) for one in places], np.int64) for name in ("size", "offset"))
        return Lists(self._path, int(self._ivf.code_size), sizes, offsets, sizes)

    def clear(self) -> None:
        """Remove all rows; what was trained stays."""
        lists = faiss.ArrayInvertedLists(self._ivf.nlist, self._ivf.code_size)
        self._ivf.replace_invlists(lists, True)
        lists.this.disown()
        self._index.ntotal = self._ivf.ntotal = 0

    def spill(self, write: Write, path: Path, start: int) -> Lists:
        """Remove all rows, and write them to the file `path`, as `inverted_lists.append` does."""
        found = inverted_lists.append(write, path, start, int(self._ivf.code_size), self._contents())
        self.clear()
        return found

    def _contents(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the codes and ids of each list."""
        lists = self._ivf.invlists
        for number in range(self._ivf.nlist):
            if size := lists.list_size(number):
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * self._ivf.code_size)
                yield codes.tobytes(), faiss.rev_swig_ptr(lists.get_ids(number), size).tobytes()
            else:
                yield b"", b""

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
        graph = faiss.downcast_index(self._ivf.quantizer)
        if isinstance(graph, faiss.IndexHNSW):  # of the nearest 64 of 4,096 lists, 16 steps find 80 %, 128 find 99.6 %
            graph.hnsw.efSearch = 2 * lists

    @property
    def halves(self) -> bool:
        """Whether training keeps rows in 2 bytes per dimension instead of 4."""
        return isinstance(self._index, faiss.IndexIVFRaBitQ)

    def train(self, blocks: Iterable[NDArray[np.float32]], count: int) -> None:
        """Learn centroids and codes from `blocks`, (n, 2048), of at most `count` rows in all."""
        with _indexing_errors("FAISS cannot train this index", _OTHER_FACTORY):
            if self.halves:
                self._train_centroids(blocks, count)
            else:
                self._index.train(_filled(np.empty((count, WIDTH), np.float32), blocks))

    def _train_centroids(self, blocks: Iterable[NDArray[np.float32]], count: int) -> None:
        """Train an index that has nothing to learn but centroids: from bfloat16, whose error averages out."""
        codec = faiss.IndexScalarQuantizer(WIDTH, faiss.ScalarQuantizer.QT_bf16)
        codes = _filled(np.empty((count, codec.sa_code_size()), np.uint8), map(codec.sa_encode, blocks))
        clustering = faiss.Clustering(WIDTH, self._ivf.nlist, self._ivf.cp)
        clustering.decode_block_size = _DECODED
        clustering.train_encoded(codes, codec, faiss.IndexFlat(WIDTH, self._index.metric_type))
        self._ivf.quantizer.add(faiss.vector_to_array(clustering.centroids).reshape(-1, WIDTH))
        self._index.train(codec.sa_decode(codes[:1]))  # it has its centroids, so that this only sets it up

    def add(self, ids: Rows, vectors: NDArray[np.float32]) -> None:
        """Add `vectors`, (n, 2048)."""
        with _indexing_errors("FAISS cannot add rows with ids to this index", _OTHER_FACTORY):
            graph = self.halves and faiss.downcast_index(self._ivf.quantizer)
            if isinstance(graph, faiss.IndexHNSW):
                # Many rows at once find their lists in a matrix product: 0.1 ms a row and 4,096 lists, exactly; the
                # graph, which is for single queries, takes 0.6.
                nearest = graph.storage.search(vectors, 1)[1]
                self._index.add_core(len(ids), *map(faiss.swig_ptr, (vectors, ids, nearest)))
            else:
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


def _filled(target: NDArray[Any], blocks: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Write `blocks` to the beginning of `target`, and return that part of it."""
    done = 0
    for block in blocks:
        target[done : done + len(block)] = block
        done += len(block)
    return target[:done]


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
