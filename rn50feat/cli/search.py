"""The command ``search``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rn50feat.cli import report
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import (
    IntegerRange,
    check_option,
    csv_option,
    engine_options,
    form_of,
    html_option,
    json_option,
    moved_weights_option,
    option,
    typed,
)
from rn50feat.cli.options import box as box_type
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import downloads, say, write
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import QueryError, raise_all

if TYPE_CHECKING:
    from rn50feat.searching.search import Result
    from rn50feat.store.reader import FeatureStore


@click.command("search", no_args_is_help=True)
@click.argument("queries", metavar="QUERY... [STORE]", nargs=-1)
@option(
    "--from-file",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="Also search with the images and folders in LIST, one per line; - is standard input.",
)
@option("--stored", metavar="PATH", multiple=True, help="Search with an image in the store, named by its stored path.")
@option("--unlike", metavar="IMAGE", multiple=True, help="Stay away from images like this one.")
@option("--together", is_flag=True, help="Search with all QUERY images as one: with their mean.")
@option("--box", type=box_type, metavar="X,Y,W,H", help="Search with this part of each QUERY image, in pixels.")
@option("-k", "--neighbours", "k", type=IntegerRange(1), default=10, show_default=True, help="Hits per query.")
@option("--min-score", type=float, help="Leave out hits below this score.")
@option(
    "--metric",
    type=click.Choice(["cosine", "l2", "ip"]),
    default="cosine",
    show_default=True,
    help="How to score similarity.",
)
@option("--exclude-self", is_flag=True, help="Leave out the query's own row.")
@option("--exact", is_flag=True, help="Ignore the index and scan every row.")
@moved_weights_option
@json_option
@csv_option
@option(
    "-0", "--null", is_flag=True, help="Print only paths, each followed by a NUL; names in LIST end with NULs, too."
)
@html_option
@check_option
@engine_options
@pass_ending
def command(
    ending: Ending,
    queries: tuple[str, ...],
    from_file: Path | None,
    stored: tuple[str, ...],
    unlike: tuple[str, ...],
    together: bool,
    box: tuple[int, int, int, int] | None,
    k: int,
    min_score: float | None,
    metric: str,
    exclude_self: bool,
    exact: bool,
    weights: str | None,
    as_json: bool,
    csv: bool,
    null: bool,
    html: Path | None,
    check: bool,
    **engine: Any,
) -> None:
    """Find the images in STORE that are most similar to each QUERY image.

    A folder as QUERY stands for the images in it. STORE is the argument that ends in .h5 or .hdf5, else the variable
    RN50FEAT_STORE, else the only store in the current folder. Prints a table on
    a terminal, and tab-separated lines (query, rank, score, path) elsewhere.
    Hits whose image is missing or has changed are marked. Paths are relative to
    the store's folder, or absolute for images that are neither in that folder
    nor next to it. If STORE has an index, it is used.
    """
    from rn50feat.searching.search import search as by_image
    from rn50feat.searching.search import search_stored as by_path

    form = form_of(json=as_json, csv=csv, null=null and not (from_file and (as_json or csv)))
    images, named = _sorted(queries)
    if not images and not stored and from_file is None:
        raise click.UsageError("Give a QUERY image, or --stored PATH.")
    images += [] if from_file is None else _listed(from_file, null)
    if not images:
        _require_none_typed("weights", "unlike", "together", "box")
    options = EngineOptions(**engine)
    store = open_store(named, ending)
    settings: dict[str, Any] = {"k": k, "metric": metric, "min_score": min_score}
    settings |= {"exclude_self": exclude_self, "exact": exact, "check": check}
    results = by_path(stored, store, **settings) if stored else []
    failures: list[QueryError] = []
    if images:
        if len(images) > 1 or os.path.isdir(images[0]):  # one that cannot be used costs only its own hits
            settings["on_failure"] = failures.append
        settings |= {"weights_file": weights, "options": options}
        with downloads() as on_download:
            settings |= {"unlike": unlike, "together": together, "box": box}
            results += by_image(images, store, on_download=on_download, **settings)
    mark_random(store)
    if html:
        _save_page(html, results, stored, store, check=check, k=k, metric=metric, box=box, options=options)
    ending.add(**report.result_facts(results, store, metric))
    if form != "json":
        for result in results:
            if not result.hits:
                say(f"{result.query}: no hits")
        default = report.table if sys.stdout.isatty() else report.tab_separated
        write({"csv": report.comma_separated, "null": report.nul_separated}.get(form or "", default)(results))
    raise_all(failures)


def _require_none_typed(*names: str) -> None:
    """Raise `UsageError` for an option that is about QUERY images."""
    for name in filter(typed, names):
        raise click.UsageError(f"--{name} requires a QUERY image: --stored computes nothing.")


def _sorted(queries: Sequence[str]) -> tuple[list[str], Path | None]:
    """Tell the images in the arguments from the store."""
    from rn50feat.store.reader import SUFFIXES

    images = [query for query in queries if not query.endswith(SUFFIXES)]
    stores = [Path(query) for query in queries if query.endswith(SUFFIXES)]
    if len(stores) > 1:
        raise click.UsageError(f"More than one STORE ({', '.join(map(str, stores))}): name one.")
    return images, stores[0] if stores else None


def _listed(listing: Path, null: bool) -> list[str]:
    """Read the names in a list; raise `QueryError` if there are none."""
    from rn50feat.sources import lists

    if names := list(lists.names(listing, null=null)):
        return names
    raise QueryError(f"{listing} names no image: list images or folders to search with")


def _save_page(
    html: Path, results: Sequence[Result], stored: Sequence[str], store: FeatureStore, *, check: bool, **settings: Any
) -> None:
    """Write a page of results, those of the `stored` queries first."""
    from rn50feat.pages.gallery import search_page
    from rn50feat.pages.page import save
    from rn50feat.sources.presence import readable

    known = [readable(store.locate(path), check=check) for path in stored]
    locations = [*known, *(result.location for result in results[len(known) :])]
    save(html, search_page(results, locations, store, out=html, **settings))
