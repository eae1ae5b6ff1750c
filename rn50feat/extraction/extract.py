"""Bring a store up to date with its sources: the journey from files to rows.

In: sources and the path of a store. Out: the store with a row for every
picture, its ledger, and a `Summary`. A run costs what is new: what must be
computed is decided by `plan`, and the engine (and with it torch) starts only
when there is something.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import chain

from rn50feat.durable import lock, waiting
from rn50feat.engines import local
from rn50feat.engines.contract import Engine, EngineOptions, StartEngine
from rn50feat.errors import MissingWeightsError
from rn50feat.extraction import prune as pruning
from rn50feat.extraction.attempts import Attempts
from rn50feat.extraction.run import Run
from rn50feat.extraction.summary import Progress, Summary
from rn50feat.model.weights import Choices, Weights, fetch
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.selection import Selection, Sources
from rn50feat.store.reader import locate_output

COMMIT_ROWS = 10_000
COMMIT_SECONDS = 20.0  # what a kill may cost; a commit itself takes some 15 ms


def extract(
    pictures: Sources | Selection,
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
    damaged: str = "keep",
    prune: bool = False,
    prune_limit: float = pruning.LIMIT,
    force: bool = False,
    commit_rows: float = COMMIT_ROWS,
    commit_seconds: float = COMMIT_SECONDS,
    time_budget: float | None = None,
    options: EngineOptions = EngineOptions(),
    start: StartEngine = local.start,
    should_stop: Callable[[], str | None] = lambda: None,
    on_progress: Callable[[Progress], None] | None = None,
    on_excluded: Callable[[Excluded], None] = lambda excluded: None,
) -> Summary:
    """Give every picture in `pictures`, folders, files or a `Selection`, a row in `store`.

    What is not said (`weights` to `dtype`) is as the store has it; for a new one ``imagenet-v1``, the variant that the
    weights tell, its preprocessing, and float32 when computed in fp32, else float16. `overwrite` replaces the store. A
    failure is tried again once its file, or the extra or limit that it failed by, has changed, and with `retry_failed`.
    Images that decode with a warning are `damaged`: keep gives them a row and a note, skip makes them failures.

    `prune` removes the rows of pictures that are gone from these sources, or that the selection leaves out
    (`on_excluded` gets what it does), though not when a source is empty or more than `prune_limit` percent of its
    rows would go, unless `force` is given.

    A commit comes after `commit_rows` pictures or `commit_seconds`. A run ends early, after a commit, when
    `time_budget` seconds are over or `should_stop` returns a reason. Raises the leaves of `RN50FeatError`; what was
    committed by then stays.
    """
    selection = Selection.of(pictures)
    pruning.check(selection, prune)
    path = locate_output(store)
    end = float("inf") if time_budget is None else time.monotonic() + time_budget

    def stop() -> str | None:
        return "time budget" if time.monotonic() > end else should_stop()

    def once() -> Summary:
        locked = lock.run_lock(path)
        with locked, Run(path, selection, overwrite, stop, commit_rows, commit_seconds, on_excluded, damaged) as run:
            run.agree(Choices(weights, variant, preprocess, exif, exact_decode, color, value_range), dtype)
            run.watch(selection, on_progress)
            attempts = Attempts(options.max_megapixels * 1_000_000, all_again=retry_failed, damaged=damaged)
            _fill(run, selection, lambda: start(run.weights, run.provenance, options), attempts)
            if prune and not run.summary.stopped:
                run.prune(selection, prune_limit, force)
            return run.summary

    return _with_weights(once, stop, on_progress)


def _fill(run: Run, selection: Selection, start: Callable[[], Engine], attempts: Attempts) -> None:
    """Give every image of `selection` its row; `start` only when there is something to compute."""
    if not selection.can_be_read_again:
        run.weights.require()
    found = selection.found()
    todo = run.todo(found, attempts)
    if (first := next(todo, None)) is not None and (engine := _started(run, start)) is not None:
        with engine:
            run.compute(engine, chain([first], todo))
    run.finish()
    if run.summary.stopped == "time budget":
        run.count_left(found, attempts)


def _started(run: Run, start: Callable[[], Engine]) -> Engine | None:
    """Return the engine that `start` starts, which may take a minute; None when the run is stopped meanwhile."""
    run.tell("preparing the network")
    try:
        with run.summary.timed("start"):
            return waiting.attend(start, run.stop, dispose=lambda engine: engine.__exit__())
    except waiting.Stopped:
        return None


def _with_weights(
    once: Callable[[], Summary], stop: Callable[[], str | None], on_progress: Callable[[Progress], None] | None
) -> Summary:
    """Return what `once` returns; when it lacks weights, download them, and meanwhile keep nobody from the store."""

    def told(done: int, total: int) -> None:
        if on_progress is not None:
            of = f" of {total / 1e6:.0f}" if total else ""
            on_progress(Progress(Summary(), None, f"downloading {missing.name}, {done / 1e6:.0f}{of} MB"))

    begun = time.monotonic()
    try:
        return once()
    except MissingWeightsError as error:
        missing: Weights = error.weights
    try:
        fetch(missing, stop=stop, on_download=told)
    except waiting.Stopped as stopped:
        return Summary(seconds=time.monotonic() - begun, stopped=stopped.reason)
    return once()
