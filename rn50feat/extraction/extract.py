"""Bring a store up to date with its sources: the way from files to rows.

In: sources and the path of a store. Out: the store with a row for every
image, its ledger of failures, and a `Summary`. A run costs what is new: the
engine, and with it torch, starts only when there is something to compute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace

import numpy as np

from rn50feat.durable import waiting
from rn50feat.engines import calibration, local
from rn50feat.engines.contract import Engine, EngineOptions, StartEngine
from rn50feat.errors import MissingWeightsError, SourceError
from rn50feat.extraction import prune as pruning
from rn50feat.extraction.advice import moved_from
from rn50feat.extraction.attempts import Attempts
from rn50feat.extraction.catalogue import Catalogue
from rn50feat.extraction.changes import Changes, nothing_found
from rn50feat.extraction.healing import damaged_rows, settle_damaged
from rn50feat.extraction.moves import Moves
from rn50feat.extraction.plan import Step, Verdict, plan
from rn50feat.extraction.quantizing import Quantizing
from rn50feat.extraction.quantizing import require as require_precision
from rn50feat.extraction.todo import Todo
from rn50feat.model.compatibility import agree, require
from rn50feat.model.weights import Choices, Weights, fetch
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.selection import Selection, Sources
from rn50feat.store.reader import locate_output
from rn50feat.store.schedule import COMMIT_ROWS, COMMIT_SECONDS
from rn50feat.store.session import WriteSession
from rn50feat.store.summary import Progress, Summary

COUNT_SECONDS = 10.0  # for counting what a run leaves undone


def extract(
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
    calibrate: str | os.PathLike[str] | None = None,
    int8_bound: float = calibration.BOUND,
    overwrite: bool = False,
    retry_failed: bool = False,
    heal: bool = False,
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
    """Compute a row in `store` for every image in `images`: folders, files or a `Selection`.

    Settings that are None (`weights` to `dtype`) are the store's; a new one gets ``imagenet-v1``, the variant that
    the weights belong to, its preprocessing, and float32 when computed in fp32, else float16. `overwrite` replaces
    the store. A new store in int8 measures ranges on images in `calibrate`, else on its own, and needs cosines of
    `int8_bound` with fp32. A failure is tried again once its file, or the extra or limit that it failed by, has
    changed, and with `retry_failed`. Rows that differ from their checksums are computed again; each run checks
    some, with `heal` all. Images that decode with a warning are `damaged`: keep gives them a row and a note, skip
    makes them failures. `prune` removes the rows of images that are gone or excluded (`on_excluded` gets each
    exclusion); without `force`, not when a source is empty or more than `prune_limit` percent of its rows would go.
    A commit follows `commit_rows` images or `commit_seconds`. A run ends early, with a commit, after `time_budget`
    seconds or when `should_stop` returns a reason. Raises the leaves of `RN50FeatError`.
    """
    selection = Selection.of(images)
    pruning.check(selection, prune)
    choices = Choices(weights, variant, preprocess, exif, exact_decode, color, value_range)
    attempts = Attempts(options.max_megapixels * 1_000_000, all_again=retry_failed, damaged=damaged)
    end = float("inf") if time_budget is None else time.monotonic() + time_budget

    def stop() -> str | None:
        return "time budget" if time.monotonic() > end else should_stop()

    def once() -> Summary:
        with WriteSession(
            locate_output(store), "extract", overwrite=overwrite, damaged=damaged, commit_rows=commit_rows,
            commit_changes=float("inf"),  # rows come slowly enough for `commit_seconds` to bound the memory
            commit_seconds=commit_seconds, should_stop=stop, on_progress=on_progress,
        ) as session:  # fmt: skip
            network = _Network(session, choices, dtype, start, options, Quantizing(selection, calibrate, int8_bound))
            threading.Thread(target=_count_files, args=(session, selection, on_progress), daemon=True).start()
            todo = _fill(session, selection, network, attempts, heal, on_excluded)
            if prune and not session.summary.stopped:
                pruning.prune(session, selection, todo, limit=prune_limit, force=force)
            return session.summary

    return _with_weights(once, stop, on_progress)


class _Network:
    """The network of a run: agreed on with the store at once, started for the first image that needs it."""

    def __init__(
        self,
        session: WriteSession,
        choices: Choices,
        dtype: str | None,
        start: StartEngine,
        options: EngineOptions,
        quantizing: Quantizing,
    ) -> None:
        """Choose weights and provenance; raise where they are not those of the store."""
        require_precision(session.old, options)
        self.weights, self._provenance = agree(session.old, choices, dtype)
        session.prepare(self._provenance)
        self._session, self._dtype, self._start, self._options = session, dtype, start, options
        self._quantizing = quantizing

    def start(self, running: ExitStack) -> Engine | None:
        """Start the engine, which may take a minute, and add it to `running`; None when the run is stopped first."""
        session = self._session
        session.tell("preparing the network")
        try:
            with session.summary.timed("start"):
                engine = waiting.attend(self._started, session.stop, dispose=lambda engine: engine.__exit__())
        except waiting.Stopped:
            return None
        running.enter_context(engine)
        provenance = replace(self._provenance, weights_sha256=engine.weights_sha256)
        require(session.old, provenance)
        dtype = np.dtype(self._dtype or ("float32" if engine.precision == "fp32" else "float16"))
        session.prepare(provenance, dtype, machine=engine)
        return engine

    def _started(self) -> Engine:
        if self._options.precision == "int8" and self._provenance.quantization is None:
            self._provenance = self._quantizing.of(self.weights, self._provenance, self._options)
            assert self._provenance.quantization is not None
            self._session.summary.int8 = self._provenance.quantization.agreement
        return self._start(self.weights, self._provenance, self._options)


def _fill(
    session: WriteSession,
    selection: Selection,
    network: _Network,
    attempts: Attempts,
    heal: bool,
    on_excluded: Callable[[Excluded], None],
) -> Todo:
    """Find all files, plan what to do with each, settle what needs no network, and compute the rest."""
    if not selection.can_be_read_again:
        network.weights.require()  # a download would begin the run anew
    damaged = frozenset[int]() if session.old is None else damaged_rows(session.old, thorough=heal)
    session.repair(rows=bool(damaged))
    catalogue = Catalogue(session.old, selection, damaged)
    found = selection.found()
    moves = None if session.old is None else Moves(session.old, selection, catalogue)
    steps = plan(found, session.path, catalogue, again=attempts.another, rule=selection.rule, moves=moves)
    todo, changes = Todo(steps, catalogue, session, on_excluded), Changes(session, catalogue)
    with ExitStack() as running:
        engine: Engine | None = None
        while todo.look():
            changes.settle(todo)
            if todo.images and (engine := engine or network.start(running)) is not None:
                _compute(engine, todo, changes, session)
    changes.settle(todo)
    _finish(session, selection, todo)
    if session.old is not None:
        session.summary.moved_from = moved_from(session.old, selection, len(todo.met), session.summary)
    if not session.summary.stopped:
        settle_damaged(session, catalogue, damaged)
    if session.summary.stopped == "time budget":
        rest = plan(found, session.path, catalogue, again=attempts.another, hashing=False, rule=selection.rule)
        _count_left(session, todo, rest)
    return todo


def _compute(engine: Engine, todo: Todo, changes: Changes, session: WriteSession) -> None:
    """Send images through `engine`, and write what comes back: first the changes met on the way."""
    for batch in engine.embed(todo.stream()):
        changes.settle(todo)
        changes.take(batch, todo)
        session.tell()
        if session.stop():
            break
    session.summary.stages.update(engine.seconds)


def _finish(session: WriteSession, selection: Selection, todo: Todo) -> None:
    """Commit with the record of the run; raise `SourceError` where there is no image for a new store."""
    if session.old is None and not session.opened:
        if session.summary.stopped:
            return
        raise nothing_found(session.path, todo.changes, session.summary.excluded)
    session.summary.linked = [f"{link} -> {target}" for link, target in selection.outside.items()]
    session.update_weights_path()
    session.commit(ended=True)


def _count_left(session: WriteSession, todo: Todo, rest: Iterable[Step]) -> None:
    """Count what a run leaves undone when its time is over: what it has in hand, and the steps of the `rest`.

    Gives up when that takes longer than `COUNT_SECONDS`.
    """
    left, end = todo.in_hand + len(todo.images), time.monotonic() + COUNT_SECONDS
    for step in rest:
        left += step.verdict is Verdict.COMPUTE
        if time.monotonic() > end:
            return
    session.summary.left = left
    if session.opened:
        session.commit(ended=True)


def _count_files(session: WriteSession, selection: Selection, on_progress: Callable[[Progress], None] | None) -> None:
    """Count the files while the run goes on, so that its progress, if it is shown, has an end."""
    if on_progress is None:
        return
    with suppress(SourceError):  # of a list that cannot be read: the run itself reports that
        session.total = selection.count()


def _with_weights(
    once: Callable[[], Summary], stop: Callable[[], str | None], on_progress: Callable[[Progress], None] | None
) -> Summary:
    """Call `once`; when it lacks weights, download them, without the lock on the store, and call it again."""

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
