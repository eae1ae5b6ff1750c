"""The command ``extract``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rn50feat.cli import report
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.index import update
from rn50feat.cli.network_options import color_options, network_options
from rn50feat.cli.options import (
    PATTERN,
    NumberRange,
    commit_interval,
    dtype_option,
    duration,
    engine_at,
    engine_options,
    failure_limit,
    json_option,
    null_list_option,
    option,
    out_argument,
    place_options,
    quiet_option,
    shard_of,
    typed,
)
from rn50feat.cli.outcome import STOP_CODES, report_run
from rn50feat.cli.terminal import progress, signals, write
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import PruneError, RN50FeatError, raise_all
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.selection import Selection, Shard

if TYPE_CHECKING:
    from rn50feat.store.summary import Summary


@click.command("extract", no_args_is_help=True)
@click.argument("sources", metavar="SOURCE...", nargs=-1, type=click.Path())
@out_argument
@option(
    "--from-file",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="Also take the images and folders in LIST, one per line; - is standard input.",
)
@null_list_option
@option(
    "--exclude",
    type=PATTERN,
    multiple=True,
    metavar="PATTERN",
    help="Leave out what matches this .gitignore pattern, such as 'raw/'; can be repeated. Trash, thumbnails and"
    " snapshots of NAS systems and desktops are left out unless '!PATTERN' includes them again.",
)
@option("--list-excluded", is_flag=True, help="Print what is left out, and the pattern that matches it.")
@option("--shard", type=shard_of, metavar="I/N", help="Process only share I of N of the images, such as 1/8.")
@option(
    "--weights",
    help="Weights to use: imagenet-v1, imagenet-v2, a file or random[:SEED].  [default: the store's, else imagenet-v1]",
)
@network_options
@option(
    "--exif/--no-exif",
    default=None,
    help="Rotate images as their EXIF data says.  [default: the store's, else the preprocessing's]",
)
@option(
    "--exact-decode/--scaled-decode",
    default=None,
    help="Decode large JPEGs at full or at reduced scale.  [default: the store's, else the preprocessing's]",
)
@color_options
@dtype_option("the store's, else by precision")
@option(
    "--calibrate",
    type=click.Path(),
    metavar="FOLDER",
    help="With --precision int8: measure ranges on these images, not on those of the run.",
)
@option(
    "--int8-bound",
    type=NumberRange(0, 1),
    default=0.98,
    show_default=True,
    help="Refuse int8 if the cosine of a row with that of fp32, after subtracting the mean, is lower.",
)
@option("--overwrite", is_flag=True, help="Replace the store with a new one.")
@option(
    "--damaged",
    type=click.Choice(["keep", "skip"]),
    default="keep",
    show_default=True,
    help="Keep a row for damaged images that still decode, and note the damage, or count them as failures.",
)
@option("--retry-failed", is_flag=True, help="Retry failed images even if they have not changed.")
@option("--heal", is_flag=True, help="Check every row, not only some, and recompute damaged ones.")
@option("--prune", is_flag=True, help="Remove the rows of images that are gone from these sources.")
@option(
    "--prune-limit",
    type=NumberRange(0, 100),
    default=20.0,
    show_default=True,
    help="Remove nothing if more than this percentage of the rows would go.",
)
@option("--force", is_flag=True, help="Prune beyond the limit, and even if a source is empty.")
@option(
    "--commit-every",
    type=commit_interval,
    metavar="IMAGES,TIME",
    default="10000,20s",
    show_default=True,
    help="Commit after this many images or this much time, whichever comes first.",
)
@option("--time-budget", type=duration, metavar="TIME", help="Commit and stop after this time: 90s, 30m, 2h.")
@option("--index", "indexed", is_flag=True, help="Build the store's index after the run, or bring it up to date.")
@option("--max-failures", type=failure_limit, metavar="N|P%", help="Exit with 4 if more of the images tried fail.")
@option(
    "--max-ledger",
    type=failure_limit,
    metavar="N|P%",
    help="Exit with 4 if more of the images found are in the ledger, including those not retried.",
)
@option("--dry-run", is_flag=True, help="Only report what would be done, with an estimate of time and space.")
@place_options
@engine_options
@quiet_option
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
    """Compute features of all images in SOURCE (folders, files, archives or URLs) into OUT.h5.

    Unchanged images that the store already has cost nothing, moved images keep
    their rows, copies reuse features, and changed images are computed again.
    Images that cannot be read are recorded in the store's ledger of failures.
    """
    from rn50feat.extraction.extract import extract as run

    _require_sense(sources, out, from_file, null, settings)
    place = engine_at(engine, ray_address)
    selection = Selection(sources, listing=from_file, null=null, shard=shard, exclude=exclude)
    options = EngineOptions(**{field.name: settings.pop(field.name) for field in dataclasses.fields(EngineOptions)})
    if list_excluded:
        settings["on_excluded"] = _lister(ending, as_json)
    if dry_run:
        for name in ("time_budget", "heal", "calibrate", "int8_bound"):
            del settings[name]
        _show_preview(selection, out, ending, as_json, options=options, **settings)
        return
    errors: list[RN50FeatError] = []
    # With --json, stdout is for one object: Ray prints there why a worker died.
    aside = redirect_stdout(sys.stderr if as_json else sys.stdout)
    with progress(quiet) as on_progress, signals() as should_stop, aside:
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
    report_run(summary, out, ending, quiet=quiet)
    ending.add(prune=_pruning(summary, errors) if settings["prune"] else None)
    if indexed and out.exists() and summary.stopped not in STOP_CODES:
        _update_index(out, ending, errors, quiet=quiet, rebuild=settings["overwrite"])
    raise_all([*errors, *summary.beyond(max_failures, max_ledger, out)])


def _require_sense(
    sources: tuple[str, ...], out: Path, from_file: Path | None, null: bool, settings: dict[str, Any]
) -> None:
    """Raise `click.UsageError` for missing or swapped arguments, and for options that require others."""
    from rn50feat.store.reader import SUFFIXES

    if not sources and from_file is None:
        if out.suffix not in SUFFIXES and not out.is_file():
            raise click.UsageError("Missing argument 'OUT.h5': name the store to write, after the sources.")
        raise click.UsageError("Missing argument 'SOURCE...': name folders or images, or a list with --from-file.")
    if out.suffix not in SUFFIXES and not out.is_file() and any(source.endswith(SUFFIXES) for source in sources):
        raise click.UsageError(f"{out} is not the name of a store: name the store last, after the sources.")
    if null and from_file is None:
        raise click.UsageError("--null requires --from-file.")
    if settings["force"] and not settings["prune"]:
        raise click.UsageError("--force requires --prune.")
    for name in ("calibrate", "int8_bound"):
        if typed(name) and settings["precision"] != "int8":
            raise click.UsageError(f"--{name.replace('_', '-')} requires --precision int8.")
    if typed("prune_limit") and not settings["prune"]:
        raise click.UsageError("--prune-limit requires --prune.")


def _lister(ending: Ending, as_json: bool) -> Callable[[Excluded], None]:
    """Return a callback that prints each excluded file or folder, or keeps it for the JSON."""
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
    """Describe what --prune did, ready for JSON."""
    reason = str(errors[0]) if errors else f"stopped by {summary.stopped}" if summary.stopped else None
    return {"done": reason is None, "removed": summary.removed, "reason": reason}


def _update_index(out: Path, ending: Ending, errors: list[RN50FeatError], **settings: Any) -> None:
    """Bring the index up to date; add to `errors` what prevents it."""
    from rn50feat.store.reader import FeatureStore

    try:
        ending.add(index=update(FeatureStore(out), **settings))
    except RN50FeatError as error:
        errors.append(error)
