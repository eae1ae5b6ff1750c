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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rn50feat import __version__, report
from rn50feat.engines import EngineOptions
from rn50feat.errors import RN50FeatError, StoreError

if TYPE_CHECKING:
    from rn50feat.extract import Progress
    from rn50feat.provenance import Provenance

Command = TypeVar("Command", bound=Callable[..., Any])
PLAIN_SECONDS = 30.0  # between two lines of progress where there is no terminal
STORE_SUFFIXES = (".h5", ".hdf5")


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


class _Option(click.Option):
    """An option that the variable RN50FEAT_<its long name> sets too."""

    def __init__(self, declarations: Sequence[str], **settings: Any) -> None:
        long = next(name for name in declarations if name.startswith("--")).partition("/")[0]
        super().__init__(declarations, envvar="RN50FEAT_" + long[2:].replace("-", "_").upper(), **settings)


def option(*declarations: str, **settings: Any) -> Callable[[Command], Command]:
    return click.option(*declarations, cls=_Option, **settings)


def engine_options(command: Command) -> Command:
    """Give a command the options of `EngineOptions`."""
    for decorate in reversed(
        (
            option("--device", default=EngineOptions.device, show_default=True, help="auto, cpu, cuda or cuda:N."),
            option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
                default=EngineOptions.precision,
                show_default=True,
                help="What to compute in; auto is fp16 on a GPU, fp32 on the CPU.",
            ),
            option(
                "--batch-size",
                type=click.IntRange(1, 4096),
                default=EngineOptions.batch_size,
                show_default=True,
                help="Pictures that go through the network at once.",
            ),
            option(
                "--workers",
                type=click.IntRange(0, 1024),
                default=EngineOptions.workers,
                show_default=True,
                help="Decoding processes; 0 chooses by the number of cores.",
            ),
            option(
                "--max-megapixels",
                type=click.IntRange(1, 100_000),
                default=EngineOptions.max_megapixels,
                show_default=True,
                help="Larger pictures fail before they are decoded.",
            ),
        )
    ):
        command = decorate(command)
    return command


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
@option("--weights", help="imagenet-v1, imagenet-v2, a file, or random[:SEED]. [default: the store's, or imagenet-v1]")
@option(
    "--exif/--no-exif", default=None, help="Turn pictures upright as their EXIF says. [default: as the store, or yes]"
)
@option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the stored features. [default: by precision]")
@option("--overwrite", is_flag=True, help="Replace the store by a new one.")
@option("--retry-failed", is_flag=True, help="Try pictures again that failed and have not changed.")
@engine_options
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def extract(
    sources: tuple[Path, ...],
    out: Path,
    weights: str | None,
    exif: bool | None,
    dtype: str | None,
    overwrite: bool,
    retry_failed: bool,
    quiet: bool,
    as_json: bool,
    **engine: Any,
) -> None:
    """Give every picture in SOURCE (folders or files) a row in OUT.h5.

    A picture that the store has already, unchanged, costs nothing; a copy or a
    moved file reuses its features; a changed one is computed anew. Pictures
    that cannot be read are entered in the store's ledger of failures.
    """
    from rn50feat.extract import extract as run
    from rn50feat.store import FeatureStore

    with _progress(quiet) as on_progress:
        summary = run(
            sources,
            out,
            weights=weights,
            exif=exif,
            dtype=dtype,
            overwrite=overwrite,
            retry_failed=retry_failed,
            options=EngineOptions(**engine),
            on_progress=on_progress,
        )
    if not quiet:
        _say(f"{out}: {report.counts(summary.as_dict())}, in {summary.seconds:.1f} s")
        if summary.failed:
            _say(f"rn50feat info {out} --failures tells what could not be read, and why")
        _mark_random(FeatureStore(out).provenance)
    if as_json:
        _write(json.dumps({"store": str(out), **summary.as_dict()}) + "\n")


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
            pictures, store, weights_file=weights, options=EngineOptions(**engine), progress=_on_terminal(), **settings
        )
    _mark_random(store.provenance)
    if form == "json":
        _write(report.as_json(results, store, metric))
    else:
        default = report.table if sys.stdout.isatty() else report.tab_separated
        _write({"csv": report.comma_separated, "null": report.nul_separated}.get(form or "", default)(results))


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
        _write(json.dumps({**facts, **listed}, indent=2) + "\n")
    else:
        _write(report.failure_lines(ledger) if failures else report.description(facts, opened.provenance))


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


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Yield what shows the progress of a run: a bar on a terminal, a plain line now and then elsewhere."""
    if quiet:
        yield None
    elif _on_terminal():
        from tqdm import tqdm

        with tqdm(unit="img", dynamic_ncols=True, leave=False, smoothing=0.1) as bar:

            def advance(progress: Progress) -> None:
                bar.total = progress.total
                bar.update(progress.done.found + progress.done.ignored - bar.n)

            yield advance
    else:
        yield _plain_progress()


def _plain_progress() -> Callable[[Progress], None]:
    started = told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= PLAIN_SECONDS:
            told = now
            rate = (progress.done.new + progress.done.changed) / (now - started)
            _say(f"{progress.done.found} pictures of {progress.total or '?'} files, {rate:.1f} images/s")

    return tell


def _mark_random(provenance: Provenance) -> None:
    if provenance.random:
        _say(f"Note: the weights are {provenance.weights}: good for trying things out, not for results")


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _say(line: str) -> None:
    click.echo(report.one_line(line), err=True)


def _write(text: str) -> None:
    """Write results to stdout, names as the very bytes that they are."""
    click.echo(text.encode("utf-8", "surrogateescape"), nl=False)
