"""The command ``duplicates``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rn50feat.cli import groups as words
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import (
    NumberRange,
    check_option,
    csv_option,
    form_of,
    html_option,
    json_option,
    option,
    quiet_option,
    store_argument,
    typed,
)
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import say, stages, write


@click.command("duplicates")
@store_argument
@option(
    "--threshold",
    type=NumberRange(0, 1, min_open=True),
    help="Lowest cosine with the first image of a group.  [default: 0.95; with random weights 0.9998]",
)
@option("--exact", is_flag=True, help="Find only byte-for-byte copies.")
@option("--scan", is_flag=True, help="Ignore the index and compare all pairs of images.")
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
    missing or have changed are marked, and do not count as copies.
    """
    from rn50feat.searching.duplicates import default_threshold, duplicates

    form = form_of(json=as_json, csv=csv)
    if exact and typed("threshold"):
        raise click.UsageError("--exact cannot be combined with --threshold: copies need none.")
    if exact and typed("scan"):
        raise click.UsageError("--exact cannot be combined with --scan: it compares no rows.")
    opened = open_store(store, ending)
    threshold = default_threshold(opened) if threshold is None else threshold
    with stages(quiet) as tell:
        groups = duplicates(
            opened,
            threshold=threshold,
            exact=exact,
            scan=scan,
            check=check,
            on_progress=lambda done, total: tell("comparing", done, total),
        )
    if html:
        from rn50feat.pages.gallery import groups_page
        from rn50feat.pages.page import save

        save(html, groups_page(groups, opened, threshold=1.0 if exact else threshold, check=check))
    ending.add(**words.facts(groups, opened, None if exact else threshold))
    if form != "json":
        default = words.table if sys.stdout.isatty() else words.tab_separated
        write((words.comma_separated if form == "csv" else default)(groups))
    if not quiet:
        say(words.line(groups))
        mark_random(opened)
