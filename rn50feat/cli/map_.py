"""The command ``map``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import check_option, json_option, option, page_file, quiet_option, store_argument
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import say, stages
from rn50feat.errors import count

if TYPE_CHECKING:
    from rn50feat.searching.map_layout import Method


@click.command("map")
@store_argument
@option("--html", type=page_file, metavar="FILE", help="Write FILE, the HTML page with the map.  [required]")
@option(
    "--method",
    type=click.Choice(["pca", "tsne"]),
    help="How to lay out the images; tsne needs rn50feat[map].  [default: the layout's, else pca]",
)
@option("--rebuild", is_flag=True, help="Lay out all images anew; otherwise, they stay where they were.")
@quiet_option
@json_option
@check_option
@pass_ending
def command(
    ending: Ending,
    store: Path | None,
    html: Path | None,
    method: str | None,
    rebuild: bool,
    quiet: bool,
    as_json: bool,
    check: bool,
) -> None:
    """Draw a map of STORE, with similar images next to each other.

    STORE is chosen as for search. The page can be zoomed, searched and
    coloured, and shows images and their most similar ones. The layout is kept
    next to the store, as out.map for out.h5: later images are added to it.
    """
    from rn50feat.pages.map_page import map_page
    from rn50feat.pages.page import save
    from rn50feat.searching.map_layout import lay_out, map_path
    from rn50feat.searching.map_points import points

    if html is None:
        raise click.UsageError("The page is missing: name it with --html, as in --html map.html.")
    opened = open_store(store, ending)
    with stages(quiet) as on_progress:
        wanted = cast("Method | None", method)
        done = lay_out(opened, method=wanted, rebuild=rebuild, on_progress=on_progress)
        drawn = points(opened, done.layout, on_progress)
        save(html, map_page(drawn, opened, out=html, method=done.layout.method, check=check))
    facts = {"file": str(map_path(opened.path)), "method": done.layout.method, "built": done.built}
    facts |= {"rows": len(done.layout.ids), "added": done.added, "removed": done.removed}
    ending.add(**facts, out=str(html), shown=len(drawn.paths))
    if not quiet:
        changes = "laid out" if done.built else f"{done.added} new, {done.removed} removed"
        say(f"{facts['file']}: {count(len(done.layout.ids), 'row')}, {changes}")
        say(f"{html}: {count(len(drawn.paths), 'image')}")
        mark_random(opened)
