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
    form_of,
    html_option,
    json_option,
    option,
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
    help="Least cosine with the first of a group.  [default: 0.95; with random weights 0.9998]",
)
@option("--exact", is_flag=True, help="Find only copies, byte for byte.")
@option("--scan", is_flag=True, help="Compare every two pictures, though there is an index.")
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@json_option
@option("--csv", is_flag=True, help="Print CSV.")
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
    """Find groups of near-identical pictures in STORE.

    STORE is as for search. Every picture of a group is at least as similar to
    its first, the one with the largest file, as the threshold says. Prints a
    table on a terminal, and tab-separated lines (group, similarity, size,
    path) elsewhere. The similarity is 'copy' for another file with the bytes
    of the first, and 'same file' for another path to a file of the group;
    files that are missing or have changed are marked, and are no copies.
    """
    from rn50feat.searching.duplicates import default_threshold, duplicates

    form = form_of(json=as_json, csv=csv)
    if exact and typed("threshold"):
        raise click.UsageError("--exact finds copies, which need no threshold: give one of the two.")
    if exact and typed("scan"):
        raise click.UsageError("--exact compares no rows: leave --scan out.")
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
