"""Turn what people search with into files and vectors.

In: paths, folders, Pillow images, arrays of pixels, and feature vectors. Out:
a `Query` for each, with a file to embed or with its vector. What is only in
memory becomes a file for a while, so that it is decoded like all images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ImageError, QueryError, SourceError
from rn50feat.images import decoding
from rn50feat.images.in_memory import InMemory, as_png, from_pixels
from rn50feat.images.provenance import Preprocessing
from rn50feat.searching.exact import prepared
from rn50feat.searching.scores import Vectors
from rn50feat.sources import contents
from rn50feat.sources.location import locate
from rn50feat.sources.reference import Reference
from rn50feat.sources.selection import Selection
from rn50feat.store.layout import WIDTH

# A path; an image; its pixels, uint8 of shape (height, width) or (height, width, 3); or features, floats of (2048,).
Given = Union[str, "os.PathLike[str]", InMemory, NDArray[Any]]
Box = tuple[int, int, int, int]  # left, top, width, height in pixels of the upright image


@dataclass(frozen=True)
class Query:
    """An image to search with: its name, and its file or its features of shape (2048,).

    ``location`` opens the image that was named, "" if there is none.
    """

    name: str
    file: Reference | None = None
    vector: Vectors | None = None
    location: str = ""


class Gathering:
    """Finds the files of queries: a context manager, at whose end the files of what is only in memory are gone."""

    def __init__(self, preprocessing: Preprocessing, max_pixels: int) -> None:
        """Decode as `preprocessing` says, images of up to `max_pixels`, where only a part of an image counts."""
        self._preprocessing, self._max_pixels = preprocessing, max_pixels
        self._held, self._saved_files = ExitStack(), 0

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def queries(self, given: Iterable[Given] | Given, box: Box | None = None) -> list[Query | QueryError]:
        """List the queries that `given` stands for; a folder stands for the images in it, (n, 2048) for n queries.

        Only the part in `box` counts of an image. What cannot be a query is listed as the error that says why.
        """
        if isinstance(given, (str, os.PathLike, InMemory, np.ndarray)):
            given = [given]
        return [query for one in given for query in self._expanded(one, box)]

    def _expanded(self, one: Given, box: Box | None) -> Iterator[Query | QueryError]:
        try:
            if isinstance(one, np.ndarray) and np.issubdtype(one.dtype, np.floating):
                yield from (Query("vector", vector=vector) for vector in _vectors(one))
            elif isinstance(one, np.ndarray):
                yield self._in_memory(from_pixels(one), box)
            elif isinstance(one, InMemory):
                yield self._in_memory(one, box)
            else:
                for name, file in _files(os.fspath(one)):
                    yield self._named(name, file, box)
        except ImageError as error:
            yield QueryError(f"an array {error}")
        except QueryError as error:
            yield error

    def _named(self, name: str, file: Reference, box: Box | None) -> Query | QueryError:
        try:
            return Query(name, self._part(name, file, box), location=file.location)
        except QueryError as error:
            return error

    def _in_memory(self, image: InMemory, box: Box | None) -> Query:
        name = os.fspath(getattr(image, "filename", "")) or "image"
        return Query(name, self._part(name, self._saved(as_png(image)), box))

    def _part(self, name: str, file: Reference, box: Box | None) -> Reference:
        """Save the part of an image that counts, and return its file."""
        if box is None:
            return file
        try:
            _, data = contents.read(file)
            suffix = os.path.splitext(file.location)[1]
            part = decoding.excerpt(data, box, self._preprocessing, suffix=suffix, max_pixels=self._max_pixels)
        except (SourceError, ImageError) as error:
            raise QueryError(f"{name} {error}: choose another image or box") from error
        return self._saved(part)

    def _saved(self, png: bytes) -> Reference:
        try:
            if not self._saved_files:  # most searches need no such folder, and work where there can be none
                self._folder = Path(self._held.enter_context(TemporaryDirectory(prefix="rn50feat-")))
            self._saved_files += 1
            path = self._folder / f"{self._saved_files}.png"
            path.write_bytes(png)
        except OSError as error:
            reason = f"an image cannot be put into a temporary file ({error.strerror})"
            raise QueryError(f"{reason}: set TMPDIR to a folder with space") from error
        return locate(path).stat()


def _vectors(features: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        finite = bool(np.isfinite(features.astype(np.float32)).all())
    if features.shape[-1:] != (WIDTH,) or features.ndim > 2 or not finite:
        raise QueryError(
            f"an array of shape {features.shape} is no query: give {WIDTH} finite numbers, or uint8 pixels"
        )
    return np.atleast_2d(features)


def _files(name: str) -> Iterator[tuple[str, Reference]]:
    """Yield the name and file of an image, or those of the images in a folder."""
    place = locate(name)
    try:
        if not os.path.isdir(name):
            yield name, place.stat()
            return
        found = [one for one in Selection(name).references() if decoding.has_image_suffix(one.location)]
    except SourceError as error:
        raise QueryError(f"{name} {error}: name an existing image") from error
    if not found:
        raise QueryError(f"{name} has no images: name an image, or a folder with some")
    yield from ((one.location, one) for one in found)


def combined(likes: Sequence[Query], avoided: Sequence[Query], metric: str, *, together: bool) -> NDArray[np.float32]:
    """Make the vectors to search with, (m, 2048), out of the vectors of queries, and of those to stay away from.

    `together` gives the mean of the queries. As in Qdrant's recommendations by average vectors, a query moves away
    from the mean of the `avoided` by as much as it differs from it. Cosine takes all vectors at length 1.
    """
    wanted, unlike = _stacked(likes), _stacked(avoided)
    if together or avoided:
        wanted, unlike = prepared(wanted, metric), prepared(unlike, metric)
    if together:
        wanted = wanted.mean(axis=0, keepdims=True)
    return 2 * wanted - unlike.mean(axis=0) if avoided else wanted


def _stacked(queries: Sequence[Query]) -> NDArray[np.float32]:
    vectors = [np.asarray(query.vector, np.float32) for query in queries]
    return np.array(vectors, np.float32).reshape(-1, WIDTH)
