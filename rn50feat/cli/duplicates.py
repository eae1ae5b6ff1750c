"""The command ``duplicates``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rn50feat.cli import groups as words
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import (
    check_option,
    csv_option,
    exact_option,
    form_of,
    html_option,
    json_option,
    option,
    quiet_option,
    store_argument,
    threshold_option,
    typed,
    verify_option,
)
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import say, stages, write

if TYPE_CHECKING:
    from rn50feat.searching.groups import Groups


@click.command("duplicates")
@store_argument
@threshold_option("Lowest cosine with the first image of a group.")
@exact_option
@option("--scan", is_flag=True, help="Ignore the index and compare all pairs of images.")
@verify_option
@option(
    "--keep",
    default="",
    metavar="largest|oldest|first-extracted|PATTERN",
    help="The image with which a group starts, and which --rest does not print.  [default: the largest file]",
)
@option("--pairs", is_flag=True, help="Print near-identical images in different groups, not the groups.")
@option(
    "--rest",
    is_flag=True,
    help="Print the files that could be deleted: all but the first of each group, without links and second paths.",
)
@option("-0", "--null", is_flag=True, help="End each name of --rest with a NUL, not a newline.")
@quiet_option
@json_option
@csv_option
@html_option
@check_option
@pass_ending
def command(
    ending: Ending,
    store: Path | None,
    threshold: float | None,
    exact: bool,
    scan: bool,
    verify: bool,
    keep: str,
    pairs: bool,
    rest: bool,
    null: bool,
    quiet: bool,
    as_json: bool,
    csv: bool,
    html: Path | None,
    check: bool,
) -> None:
    """Find groups of near-identical images in STORE.

    STORE is chosen as for search. Each group starts with its largest file, and
    all its other images are similar to that one. Prints a table on a terminal,
    and tab-separated lines (group, similarity, size, path) elsewhere. In place
    of the similarity, 'copy' marks another file with the same bytes as the
    first, and 'same file' another path to a file in the group. Files that are
    missing or have changed are marked, and do not count as copies. With --pairs, the fields are
    similarity, group, path, group and path. --rest hashes what it prints again, and leaves out
    what would free no space, has changed, or has more pixels than the first. Without --exact,
    what it prints may be another image that is only similar: look at it before you delete it.
    """
    from rn50feat.searching.duplicates import default_threshold, duplicates

    form = form_of(json=as_json, csv=csv, rest=rest)
    _require_sense(exact=exact, pairs=pairs, keep=keep, form=form)
    opened = open_store(store, ending)
    threshold = default_threshold(opened) if threshold is None else threshold
    with stages(quiet) as tell:
        groups = duplicates(
            opened,
            threshold=threshold,
            exact=exact,
            scan=scan,
            check=check,
            verify=verify,
            keep=keep,
            rehash=form == "rest",
            on_progress=tell,
        )
    if html:
        from rn50feat.pages.gallery import groups_page
        from rn50feat.pages.page import save

        save(html, groups_page(groups, opened, out=html, threshold=None if exact else threshold, check=check))
    ending.add(**words.facts(groups, opened, None if exact else threshold, verified=verify))
    if form == "rest":
        write(words.rest(groups, null=null))
    elif form != "json":
        write(_text(groups, pairs=pairs, csv=form == "csv", verified=verify))
    if not quiet:
        say(words.rest_line(groups, null=null) if form == "rest" else words.line(groups))
        if form == "rest" and (warning := words.rest_warning(groups, null=null)):
            say(warning)
        mark_random(opened)


def _require_sense(*, exact: bool, pairs: bool, keep: str, form: str | None) -> None:
    """Raise `UsageError` for options that are about nothing together."""
    for name, why in (("threshold", "copies need none"), ("scan", "it compares no rows"), ("pairs", "it finds none")):
        if exact and typed(name):
            raise click.UsageError(f"--exact cannot be combined with --{name}: {why}.")
    if exact and typed("verify"):
        raise click.UsageError("--exact cannot be combined with --verify: copies need no comparison.")
    if pairs and typed("verify"):
        raise click.UsageError("--pairs cannot be combined with --verify: only groups are verified.")
    if pairs and form == "rest" and typed("pairs"):
        raise click.UsageError("--pairs cannot be combined with --rest: pairs are of images to keep.")
    if pairs and form == "json" and typed("pairs"):
        raise click.UsageError("--pairs cannot be combined with --json: it has both groups and pairs.")
    if typed("keep") and not keep:
        raise click.UsageError("--keep is empty: name largest, oldest, first-extracted or a pattern.")
    if form != "rest" and typed("null"):
        raise click.UsageError("-0 requires --rest.")


def _text(groups: Groups, *, pairs: bool, csv: bool, verified: bool) -> str:
    if csv:
        return words.pairs_comma_separated(groups.pairs) if pairs else words.comma_separated(groups)
    if sys.stdout.isatty():
        return words.pairs_table(groups.pairs) if pairs else words.table(groups, verified=verified)
    return words.pairs_tab_separated(groups.pairs) if pairs else words.tab_separated(groups, verified=verified)
