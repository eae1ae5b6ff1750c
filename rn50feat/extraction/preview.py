"""Report what a run would do, without doing it.

In: the arguments of `extract`. Out: a `Preview`. Reads folders and the store;
reads no image beyond its first bytes, writes nothing, and needs no torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rn50feat.engines.contract import EngineOptions
from rn50feat.extraction import prune as pruning
from rn50feat.extraction.attempts import Attempts
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.plan import Verdict, plan
from rn50feat.extraction.quantizing import require as require_precision
from rn50feat.model.compatibility import agree
from rn50feat.model.weights import Choices
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.selection import Selection, Sources
from rn50feat.store.layout import ROWS, WIDTH
from rn50feat.store.reader import FeatureStore, locate_output

# Measured in bytes, on stores of 1 to 10,000 rows that `writer` made in batches of 32: what a file with one row takes
# besides its chunk of features, which is tables and the first chunk of every other column, and what each row adds to
# that: 73 and its path, which is often about as long.
FIRST_ROW = 130_000
ROW_OVERHEAD = 158


@dataclass(frozen=True)
class Preview:
    """What a run would find, in files, and what it would take.

    ``compute`` counts new and changed images, and copies of known ones, which
    only reading them reveals. ``missing`` counts names in a list that lead to
    no file, ``moved`` how many of the rows to ``remove`` may stay, because a new
    file has the size of theirs and may be the same image. ``seconds`` follows
    from the rate of the last run that computed anything, None without one;
    ``bytes`` is the approximate size of the store afterwards, in float16 where
    only the run's precision will decide. ``download`` names the weights that a
    run would download first, None for no download.
    """

    compute: int
    unchanged: int
    failed_before: int
    ignored: int
    excluded: int
    missing: int
    remove: int
    moved: int
    seconds: float | None
    bytes: int
    download: str | None = None


def preview(
    images: Sources | Selection,
    store: str | os.PathLike[str],
    *,
    weights: str | None = None,
    variant: str | None = None,
    preprocess: str | None = None,
    exif: bool | None = None,
    exact_decode: bool | None = None,
    color: str | None = None,
    value_range: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    prune: bool = False,
    prune_limit: float = pruning.LIMIT,
    force: bool = False,
    damaged: str = "keep",
    options: EngineOptions = EngineOptions(),
    on_excluded: Callable[[Excluded], None] = lambda excluded: None,
) -> Preview:
    """Predict what `extract` would do with the same arguments; raise what it would raise at its start."""
    selection = Selection.of(images)
    pruning.check(selection, prune)
    path = locate_output(store)
    existing = FeatureStore(path) if path.exists() else None
    old = None if overwrite else existing
    require_precision(old, options)
    chosen, _ = agree(old, Choices(weights, variant, preprocess, exif, exact_decode, color, value_range), dtype)
    catalogue = Catalogue(old, selection)
    counts: Counter[Verdict] = Counter()
    arrived: Counter[int] = Counter()  # the sizes of new files, among which are images that moved
    attempts = Attempts(options.max_megapixels * 1_000_000, all_again=retry_failed, damaged=damaged)
    for step in plan(selection.found(), path, catalogue, again=attempts.another, hashing=False, rule=selection.rule):
        counts[step.verdict] += 1
        if step.verdict is Verdict.EXCLUDED:
            on_excluded(Excluded(step.reference.location, step.pattern))
        if step.verdict is Verdict.COMPUTE and step.row is None:
            arrived[step.reference.size] += 1
        if step.row is not None:
            catalogue.met[step.row] = True
        if step.known is not None:
            catalogue.met[step.known.rows] = True
            counts[Verdict.UNCHANGED] += len(step.known.rows)
            counts[Verdict.FAILED_BEFORE] += step.known.failed
            counts[Verdict.IGNORED] += step.known.others
    left: Counter[int] = Counter()  # the sizes of images that are gone
    if prune and old is not None:
        rows = pruning.gone(old, selection, catalogue.met, limit=prune_limit, force=force, arrived=arrived)
        left.update(old.column("size")[rows].tolist())
    rate = None if existing is None else _last_rate(existing)
    kind = np.dtype(dtype or "float16") if old is None else old.dtype
    size, held = (0, 0) if old is None else (path.stat().st_size, len(old))
    return Preview(
        compute=counts[Verdict.COMPUTE],
        unchanged=counts[Verdict.UNCHANGED],
        failed_before=counts[Verdict.FAILED_BEFORE],
        ignored=counts[Verdict.IGNORED] + counts[Verdict.APPLEDOUBLE],
        excluded=counts[Verdict.EXCLUDED],
        missing=counts[Verdict.MISSING],
        remove=left.total(),
        moved=(left & arrived).total(),
        seconds=None if rate is None else counts[Verdict.COMPUTE] / rate,
        bytes=size + _growth(held, counts[Verdict.COMPUTE], kind.itemsize),
        download=chosen.name if counts[Verdict.COMPUTE] and chosen.missing else None,
    )


def _growth(rows: int, more: int, itemsize: int) -> int:
    """Return about how many bytes `more` rows add to a store with `rows`, whose features come in whole chunks."""
    chunk = ROWS["features"][2]
    chunks = -(-(rows + more) // chunk) - -(-rows // chunk)
    fixed = FIRST_ROW if more and not rows else 0
    return fixed + chunks * chunk * WIDTH * itemsize + more * ROW_OVERHEAD


def _last_rate(store: FeatureStore) -> float | None:
    """Return the images/s of the last run that computed something; merges and imports compute nothing."""
    for run in reversed(store.runs()):
        if run.get("command", "extract") == "extract" and (rate := run["counts"].get("images_per_second")):
            return float(rate)
    return None
