"""The command line: options in, one call of the library, its result out.

Results go to stdout, everything else to stderr. An `RN50FeatError` becomes
one ``Error:`` line and its exit code; a bug keeps its traceback. What is
heavy is imported by the command that needs it, when it runs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rn50feat import __version__, report
from rn50feat.engines import EngineOptions
from rn50feat.errors import RN50FeatError, StoreError, VerifyError
from rn50feat.options import commit_interval, duration, engine_options, failure_limit, option
from rn50feat.terminal import attended, progress, say, signals, write

if TYPE_CHECKING:
    from rn50feat.store import FeatureStore
    from rn50feat.summary import Summary

STORE_SUFFIXES = (".h5", ".hdf5")
STOP_CODES = {"SIGINT": 130, "SIGTERM": 143}


class _Failed(click.ClickException):
    """The ``Error:`` line of an `RN50FeatError`."""

    def __init__(self, error: RN50FeatError) -> None:
        super().__init__(report.one_line(str(error)))
        vars(self)["exit_code"] = error.exit_code


class _Program(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RN50FeatError as error:
            raise _Failed(error) from error


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every option can be set by a variable too: RN50FEAT_BATCH_SIZE for --batch-size, and so on.",
)
@click.version_option(__version__, prog_name="rn50feat")
def main() -> None:
    """ResNet50 features for folders of pictures, and similar pictures found by them."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "Warning")


@main.command(no_args_is_help=True)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.h5", type=click.Path(path_type=Path))
@option("--weights", help="imagenet-v1, imagenet-v2, a file, or random[:SEED].  [default: the store's, or imagenet-v1]")
@option(
    "--exif/--no-exif", default=None, help="Turn pictures upright as their EXIF says.  [default: as the store, or yes]"
)
@option(
    "--exact-decode/--scaled-decode",
    default=None,
    help="Decode large JPEGs whole, not at a smaller scale.  [default: as the store, or scaled]",
)
@option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the stored features.  [default: by precision]")
@option("--overwrite", is_flag=True, help="Replace the store by a new one.")
@option("--retry-failed", is_flag=True, help="Try pictures again that failed and have not changed.")
@option("--prune", is_flag=True, help="Remove the rows of pictures that are gone from these sources.")
@option(
    "--prune-limit",
    type=click.FloatRange(0, 100),
    default=20.0,
    show_default=True,
    help="Remove nothing when more than this percentage of the rows would go.",
)
@option("--force", is_flag=True, help="Prune beyond the limit, and when a source is empty.")
@option(
    "--commit-every",
    type=commit_interval,
    metavar="PICTURES,TIME",
    default="10000,20s",
    show_default=True,
    help="Commit after so many pictures, or so much time, or whichever comes first.",
)
@option("--time-budget", type=duration, metavar="TIME", help="Stop after this time, at a commit: 90s, 30m, 2h.")
@option("--max-failures", type=failure_limit, metavar="N|P%", help="Exit with 4 when more pictures fail than this.")
@option("--dry-run", is_flag=True, help="Only tell what would be done, and estimate what it takes.")
@engine_options
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def extract(
    sources: tuple[Path, ...],
    out: Path,
    commit_every: tuple[float, float],
    max_failures: tuple[float, bool] | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Give every picture in SOURCE (folders or files) a row in OUT.h5.

    A picture that the store has already, unchanged, costs nothing; a copy or a
    moved file reuses its features; a changed one is computed anew. Pictures
    that cannot be read are entered in the store's ledger of failures.
    """
    from rn50feat.extract import extract as run

    if settings["force"] and not settings["prune"]:
        raise click.UsageError("--force is about --prune: give both, or neither.")
    options = EngineOptions(**{field.name: settings.pop(field.name) for field in dataclasses.fields(EngineOptions)})
    if dry_run:
        del settings["time_budget"]
        _show_preview(sources, out, as_json, **settings)
        return
    with progress(quiet) as on_progress, signals() as should_stop:
        summary = run(
            sources,
            out,
            commit_rows=commit_every[0],
            commit_seconds=commit_every[1],
            options=options,
            should_stop=should_stop,
            on_progress=on_progress,
            **settings,
        )
    if not quiet:
        _tell_summary(summary, out)
    if as_json:
        write(json.dumps({"store": str(out), **summary.as_dict()}) + "\n")
    if summary.stopped in STOP_CODES:
        sys.exit(STOP_CODES[summary.stopped])
    if max_failures is not None:
        summary.check_failures(*max_failures)


def _tell_summary(summary: Summary, out: Path) -> None:
    say(f"{out}: {report.counts(summary.as_dict())}, in {summary.seconds:.1f} s")
    if summary.stopped:
        rest = "" if summary.left is None else f", {summary.left} pictures left"
        say(f"stopped by {summary.stopped}{rest}: run again to go on")
    if summary.failed:
        say(f"rn50feat info {out} --failures tells what could not be read, and why")
    if out.exists():
        from rn50feat.store import FeatureStore

        _mark_random(FeatureStore(out))


def _show_preview(sources: tuple[Path, ...], out: Path, as_json: bool, **settings: Any) -> None:
    from rn50feat.preview import preview

    expected = preview(sources, out, **settings)
    if as_json:
        write(json.dumps({"store": str(out), **dataclasses.asdict(expected)}) + "\n")
    else:
        write(report.preview_line(expected))


@main.command(no_args_is_help=True)
@click.argument("queries", metavar="QUERY... [STORE]", nargs=-1)
@option("--stored", metavar="PATH", multiple=True, help="Search by a picture of the store, by its stored path.")
@option("-k", "--neighbours", "k", type=click.IntRange(1), default=10, show_default=True, help="Hits for each query.")
@option("--min-score", type=float, help="Leave out hits below this score.")
@option(
    "--metric",
    type=click.Choice(["cosine", "l2", "ip"]),
    default="cosine",
    show_default=True,
    help="What the score is.",
)
@option("--exclude-self", is_flag=True, help="Leave out the query's own row.")
@option("--weights", help="Where the store's weights are, if they have moved.")
@option("--json", "form", flag_value="json", help="Print JSON.")
@option("--csv", "form", flag_value="csv", help="Print CSV.")
@option("-0", "--null", "form", flag_value="null", help="Print paths alone, each ended by a NUL.")
@engine_options
def search(
    queries: tuple[str, ...],
    stored: tuple[str, ...],
    k: int,
    min_score: float | None,
    metric: str,
    exclude_self: bool,
    weights: str | None,
    form: str | None,
    **engine: Any,
) -> None:
    """Find the pictures of STORE that are most similar to each QUERY picture.

    STORE is the argument that ends in .h5 or .hdf5, else the variable
    RN50FEAT_STORE, else the one store in the current folder. Prints a table on
    a terminal, and tab-separated lines (query, rank, score, path) elsewhere.
    Paths are relative to the folder of the store.
    """
    from rn50feat.search import search as by_picture
    from rn50feat.search import search_stored as by_path
    from rn50feat.store import FeatureStore

    pictures = [query for query in queries if not query.endswith(STORE_SUFFIXES)]
    named = [Path(query) for query in queries if query.endswith(STORE_SUFFIXES)]
    if len(named) > 1:
        raise click.UsageError(f"one store at a time: {' and '.join(map(str, named))} are two.")
    if not pictures and not stored:
        raise click.UsageError("Give a QUERY picture, or --stored PATH.")
    store = FeatureStore(named[0] if named else _find_store())
    settings: dict[str, Any] = {"k": k, "metric": metric, "min_score": min_score, "exclude_self": exclude_self}
    results = by_path(stored, store, **settings) if stored else []
    if pictures:
        results += by_picture(
            pictures, store, weights_file=weights, options=EngineOptions(**engine), progress=attended(), **settings
        )
    _mark_random(store)
    if form == "json":
        write(report.as_json(results, store, metric))
    else:
        default = report.table if sys.stdout.isatty() else report.tab_separated
        write({"csv": report.comma_separated, "null": report.nul_separated}.get(form or "", default)(results))


@main.command()
@click.argument("store", metavar="[STORE]", required=False, type=click.Path(path_type=Path))
@option("--failures", is_flag=True, help="List the pictures that could not be read: path, reason, attempts.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(store: Path | None, failures: bool, as_json: bool) -> None:
    """Tell what STORE holds: rows, provenance, failures and its last runs.

    STORE is as for search.
    """
    from rn50feat.store import FeatureStore

    opened = FeatureStore(store or _find_store())
    facts = report.describe(opened)
    ledger = opened.failures() if failures else []
    if as_json:
        listed = {"failures_list": [dataclasses.asdict(failure) for failure in ledger]} if failures else {}
        write(json.dumps({**facts, **listed}, indent=2) + "\n")
    else:
        write(report.failure_lines(ledger) if failures else report.description(facts, opened.provenance))


@main.command()
@click.argument("store", metavar="[STORE]", required=False, type=click.Path(path_type=Path))
@option("--sources", is_flag=True, help="Hash the pictures' files again, too, and compare.")
@option("--recompute", type=click.IntRange(0), default=0, metavar="N", help="Compute N random rows again, and compare.")
@option("--weights", help="Where the store's weights are, if they have moved.")
@engine_options
def verify(store: Path | None, sources: bool, recompute: int, weights: str | None, **engine: Any) -> None:
    """Check that STORE is whole: exit with 1, and say what is wrong, if not.

    STORE is as for search. All datasets must agree and every row be readable,
    finite and not all zero.
    """
    from rn50feat.store import FeatureStore
    from rn50feat.verify import verify as run

    opened = FeatureStore(store or _find_store())
    result = run(
        opened,
        sources=sources,
        recompute=recompute,
        weights_file=weights,
        options=EngineOptions(**engine),
        progress=attended(),
    )
    for finding in result.findings:
        write(f"{report.one_line(finding)}\n")
    for note in result.notes:
        say(note)
    if result.findings:
        raise VerifyError(f"{opened.path} has {len(result.findings)} faults: restore it from a backup or extract anew")
    say(f"{opened.path}: {len(opened)} rows, no fault found")


@main.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@option("--count", type=click.IntRange(1), default=256, show_default=True, help="Pictures to measure on.")
@engine_options
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(folder: Path, count: int, as_json: bool, **engine: Any) -> None:
    """Measure on the pictures of FOLDER where the time of a run goes.

    FOLDER is the current one unless given. Takes about half a minute, writes
    nothing, and says which stage limits and what would help.
    """
    from rn50feat.bench import bench as run

    result = run(folder, count=count, options=EngineOptions(**engine))
    write(json.dumps(dataclasses.asdict(result)) + "\n" if as_json else report.benchmark_lines(result))


def _find_store() -> Path:
    """Return the store that is meant where none is named; raise `StoreError` when that is not clear."""
    if named := os.environ.get("RN50FEAT_STORE"):
        return Path(named)
    from rn50feat.store import is_store

    found = sorted(path for path in Path.cwd().iterdir() if path.suffix in STORE_SUFFIXES and is_store(path))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise StoreError(f"the current folder holds {len(found)} stores ({names}): name one of them")
    raise StoreError("there is no store in the current folder: name one, or make one with rn50feat extract")


def _mark_random(store: FeatureStore) -> None:
    if (provenance := store.provenance).random:
        say(f"Note: the weights are {provenance.weights}: good for trying things out, not for results")
