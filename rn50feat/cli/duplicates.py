"""The command ``duplicates``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rn50feat.cli import report
from rn50feat.cli.options import form_of, html_option, option
from rn50feat.cli.stores import find_store, mark_random
from rn50feat.cli.terminal import say, stages, write


@click.command("duplicates")
@click.argument("store", metavar="[STORE]", required=False, type=click.Path(path_type=Path))
@option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="Least cosine with the first of a group.  [default: 0.95; with random weights 0.9998]",
)
@option("--exact", is_flag=True, help="Find only copies, byte for byte.")
@option("--scan", is_flag=True, help="Compare every two pictures, though there is an index.")
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@option("--json", is_flag=True, help="Print JSON.")
@option("--csv", is_flag=True, help="Print CSV.")
@html_option
def command(
    store: Path | None,
    threshold: float | None,
    exact: bool,
    scan: bool,
    quiet: bool,
    json: bool,
    csv: bool,
    html: Path | None,
) -> None:
    """Find groups of near-identical pictures in STORE.

    STORE is as for search. Every picture of a group is at least as similar to
    its first, the one with the largest file, as the threshold says. Prints a
    table on a terminal, and tab-separated lines (group, similarity, size,
    path) elsewhere. The similarity is 'copy' for another file with the bytes
    of the first, and 'same file' for another path to a file of the group;
    files that are missing or have changed are marked, and are no copies.
    """
    from rn50feat.duplicates import default_threshold, duplicates
    from rn50feat.store import FeatureStore

    form = form_of(json=json, csv=csv)
    opened = FeatureStore(store or find_store())
    threshold = default_threshold(opened) if threshold is None else threshold
    with stages(quiet) as tell:
        groups = duplicates(
            opened,
            threshold=threshold,
            exact=exact,
            scan=scan,
            on_progress=lambda done, total: tell("comparing", done, total),
        )
    if html:
        from rn50feat.pages.gallery import groups_page
        from rn50feat.pages.page import save

        save(html, groups_page(groups, opened, threshold=1.0 if exact else threshold))
    if form == "json":
        write(report.groups_json(groups, opened, None if exact else threshold))
    else:
        default = report.group_table if sys.stdout.isatty() else report.group_lines
        write((report.groups_csv if form == "csv" else default)(groups))
    if not quiet:
        say(report.groups_line(groups))
        mark_random(opened)
