"""The command ``extract``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rn50feat.cli import report
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.index import update
from rn50feat.cli.options import (
    PATTERN,
    NumberRange,
    color_options,
    commit_interval,
    duration,
    engine_at,
    engine_options,
    failure_limit,
    json_option,
    network_options,
    option,
    out_argument,
    place_options,
    shard_of,
    typed,
)
from rn50feat.cli.outcome import STOP_CODES, tell
from rn50feat.cli.terminal import progress, signals, write
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import PruneError, RN50FeatError, raise_all
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.selection import Selection, Shard

if TYPE_CHECKING:
    from rn50feat.extraction.summary import Summary


@click.command("extract", no_args_is_help=True)
@click.argument("sources", metavar="SOURCE...", nargs=-1, type=click.Path())
@out_argument
@option(
    "--from-file",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="Take the pictures and folders that LIST names, one a line, too; - is standard input.",
)
@option("-0", "--null", is_flag=True, help="The names in LIST are ended by NULs, not by lines.")
@option(
    "--exclude",
    type=PATTERN,
    multiple=True,
    metavar="PATTERN",
    help="Leave out what matches a .gitignore pattern, 'raw/' say; can be given several times. Trash, thumbnails and"
    " snapshots of NAS systems and desktops are left out unless '!PATTERN' takes them back.",
)
@option("--list-excluded", is_flag=True, help="Print what is left out, and the pattern that matches it.")
@option("--shard", type=shard_of, metavar="I/N", help="Take share I of N of the pictures only, 1/8 say.")
@option("--weights", help="imagenet-v1, imagenet-v2, a file, or random[:SEED].  [default: the store's, or imagenet-v1]")
@network_options
@option(
    "--exif/--no-exif",
    default=None,
    help="Turn pictures upright as their EXIF says.  [default: as the store, or as the preprocessing]",
)
@option(
    "--exact-decode/--scaled-decode",
    default=None,
    help="Decode large JPEGs whole, not at a smaller scale.  [default: as the store, or as the preprocessing]",
)
@color_options
@option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the stored features.  [default: by precision]")
@option("--overwrite", is_flag=True, help="Replace the store by a new one.")
@option(
    "--damaged",
    type=click.Choice(["keep", "skip"]),
    default="keep",
    show_default=True,
    help="Give damaged images that still decode a row and a note in the ledger, or count them as failures.",
)
@option("--retry-failed", is_flag=True, help="Try pictures again that failed and have not changed.")
@option("--prune", is_flag=True, help="Remove the rows of pictures that are gone from these sources.")
@option(
    "--prune-limit",
    type=NumberRange(0, 100),
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
@option("--index", "indexed", is_flag=True, help="Bring the store's index up to date after the run, or build it.")
@option("--max-failures", type=failure_limit, metavar="N|P%", help="Exit with 4 when more of the images tried fail.")
@option(
    "--max-ledger",
    type=failure_limit,
    metavar="N|P%",
    help="Exit with 4 when more of the images found are in the ledger, those not tried again included.",
)
@option("--dry-run", is_flag=True, help="Only tell what would be done, and estimate what it takes.")
@place_options
@engine_options
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@json_option
@pass_ending
def command(
    ending: Ending,
    sources: tuple[str, ...],
    out: Path,
    from_file: Path | None,
    null: bool,
    exclude: tuple[str, ...],
    list_excluded: bool,
    shard: Shard | None,
    commit_every: tuple[float, float],
    max_failures: tuple[float, bool] | None,
    max_ledger: tuple[float, bool] | None,
    dry_run: bool,
    indexed: bool,
    engine: str,
    ray_address: str,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Give every picture in SOURCE (folders, files, archives or URLs) a row in OUT.h5.

    A picture that the store has already, unchanged, costs nothing; a copy or a
    moved file reuses its features; a changed one is computed anew. Pictures
    that cannot be read are entered in the store's ledger of failures.
    """
    from rn50feat.extraction.extract import extract as run

    _require_sense(sources, out, from_file, null, settings)
    place = engine_at(engine, ray_address)
    selection = Selection(sources, listing=from_file, null=null, shard=shard, exclude=exclude)
    options = EngineOptions(**{field.name: settings.pop(field.name) for field in dataclasses.fields(EngineOptions)})
    if list_excluded:
        settings["on_excluded"] = _lister(ending, as_json)
    if dry_run:
        del settings["time_budget"]
        _show_preview(selection, out, ending, as_json, options=options, **settings)
        return
    errors: list[RN50FeatError] = []
    with progress(quiet) as on_progress, signals() as should_stop:
        try:
            summary = run(
                selection,
                out,
                commit_rows=commit_every[0],
                commit_seconds=commit_every[1],
                options=options,
                should_stop=should_stop,
                on_progress=on_progress,
                **place,
                **settings,
            )
        except PruneError as error:
            errors, summary = [error], error.summary
    tell(summary, out, ending, quiet=quiet)
    ending.add(prune=_pruning(summary, errors) if settings["prune"] else None)
    if indexed and out.exists() and summary.stopped not in STOP_CODES:
        _update_index(out, ending, errors, quiet=quiet, rebuild=settings["overwrite"])
    raise_all([*errors, *summary.beyond(max_failures, max_ledger, out)])


def _require_sense(
    sources: tuple[str, ...], out: Path, from_file: Path | None, null: bool, settings: dict[str, Any]
) -> None:
    """Raise `click.UsageError` for what is missing, and for options that are about others."""
    from rn50feat.store.reader import SUFFIXES

    if not sources and from_file is None:
        if out.suffix not in SUFFIXES and not out.is_file():
            raise click.UsageError("Missing argument 'OUT.h5': name the store to write, after the sources.")
        raise click.UsageError("Missing argument 'SOURCE...': name folders or pictures, or a list with --from-file.")
    if null and from_file is None:
        raise click.UsageError("--null is about --from-file: give both, or neither.")
    if settings["force"] and not settings["prune"]:
        raise click.UsageError("--force is about --prune: give both, or neither.")
    if typed("prune_limit") and not settings["prune"]:
        raise click.UsageError("--prune-limit is about --prune: give both, or neither.")


def _lister(ending: Ending, as_json: bool) -> Callable[[Excluded], None]:
    """Return what prints each thing that is left out, or keeps it for the JSON."""
    if not as_json:
        return lambda excluded: write(report.excluded_line(excluded))
    listed: list[dict[str, str]] = []
    ending.add(excluded_list=listed)
    return lambda excluded: listed.append(dataclasses.asdict(excluded))


def _show_preview(selection: Selection, out: Path, ending: Ending, as_json: bool, **settings: Any) -> None:
    from rn50feat.extraction.preview import preview

    expected = preview(selection, out, **settings)
    ending.add(**dataclasses.asdict(expected))
    if not as_json:
        write(report.preview_line(expected))


def _pruning(summary: Summary, errors: Sequence[RN50FeatError]) -> dict[str, Any]:
    """Return what became of --prune, ready for JSON."""
    reason = str(errors[0]) if errors else f"stopped by {summary.stopped}" if summary.stopped else None
    return {"done": reason is None, "removed": summary.removed, "reason": reason}


def _update_index(out: Path, ending: Ending, errors: list[RN50FeatError], **settings: Any) -> None:
    """Bring the index up to date; what stands in its way is one more of `errors`."""
    from rn50feat.store.reader import FeatureStore

    try:
        ending.add(index=update(FeatureStore(out), **settings))
    except RN50FeatError as error:
        errors.append(error)
