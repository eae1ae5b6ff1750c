"""The command ``compare``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rn50feat.cli import matches as words
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import (
    argument,
    check_option,
    csv_option,
    exact_option,
    form_of,
    html_option,
    json_option,
    option,
    quiet_option,
    threshold_option,
    typed,
    verify_option,
)
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import say, stages, write

_STORE = click.Path(path_type=Path)


@click.command("compare", no_args_is_help=True)
@argument(
    "first", metavar="A.h5", type=_STORE, missing="name the store to look in, then the store whose images to look for"
)
@argument("second", metavar="B.h5", type=_STORE, missing="name the store whose images to look for")
@threshold_option("Lowest cosine of near-identical images.")
@exact_option
@verify_option
@option("--new", is_flag=True, help="Print the images of B.h5 that are not in A.h5, and exit with 0.")
@quiet_option
@json_option
@csv_option
@option("-0", "--null", is_flag=True, help="Print only the locations of images of B.h5, each followed by a NUL.")
@html_option
@check_option
@pass_ending
def command(
    ending: Ending,
    first: Path,
    second: Path,
    threshold: float | None,
    exact: bool,
    verify: bool,
    new: bool,
    quiet: bool,
    as_json: bool,
    csv: bool,
    null: bool,
    html: Path | None,
    check: bool,
) -> None:
    """Find out which images of B.h5 are in A.h5; exit with 1 if any are.

    An image is in A.h5 if that has a file with the same bytes, or an image
    whose cosine with it is at least --threshold; the most similar one is
    shown. Prints a table on a terminal, and tab-separated lines (similarity,
    relation, path in B.h5, path in A.h5) elsewhere. Both stores must have
    features of the same provenance, except with --exact.
    """
    from rn50feat.searching.comparison import compare
    from rn50feat.searching.duplicates import default_threshold

    form = form_of(json=as_json, csv=csv, null=null)
    for name in ("threshold", "verify"):
        if exact and typed(name):
            raise click.UsageError(f"--exact cannot be combined with --{name}: copies need no comparison.")
    reference, opened = open_store(first, ending), open_store(second, ending)
    threshold = default_threshold(opened) if threshold is None else threshold
    with stages(quiet) as tell:
        found = compare(
            reference, opened, threshold=threshold, exact=exact, verify=verify, check=check, on_progress=tell
        )
    if html:
        from rn50feat.pages.comparison import comparison_page
        from rn50feat.pages.page import save

        least = None if exact else threshold
        save(html, comparison_page(found, reference, opened, out=html, threshold=least, check=check))
    ending.add(**words.facts(found, reference, None if exact else threshold, verified=verify))
    if form != "json":
        default = words.table if sys.stdout.isatty() else words.tab_separated
        write({"csv": words.comma_separated, "null": words.nul_separated}.get(form or "", default)(found, new=new))
    if not quiet:
        say(words.line(found, reference, opened))
        mark_random(opened)
    if found.found and not new:
        ending.stop(1)
