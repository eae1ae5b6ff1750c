"""The command ``index``, and what ``extract --index`` does after a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rn50feat.cli import report
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import NumberRange, json_option, memory, option, quiet_option, store_argument
from rn50feat.cli.stores import mark_random, open_store
from rn50feat.cli.terminal import say, stages

if TYPE_CHECKING:
    from rn50feat.searching.index_plan import Plan
    from rn50feat.store.reader import FeatureStore


@click.command("index")
@store_argument
@option(
    "--metric",
    type=click.Choice(["cosine", "l2", "ip"]),
    help="Metric to search by.  [default: the index's, else cosine]",
)
@option("--factory", help="FAISS factory string.  [default: the index's, else by size and --max-ram]")
@option("--max-ram", type=memory, metavar="SIZE", default="2G", show_default=True, help="Memory limit for building.")
@option(
    "--target-recall",
    type=NumberRange(0, 1),
    help="Recall@10 that searches must reach; sets how many lists and candidates they try."
    "  [default: the index's, else 0.98]",
)
@option("--rebuild", is_flag=True, help="Build the index from scratch.")
@quiet_option
@json_option
@pass_ending
def command(ending: Ending, store: Path | None, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Build the FAISS index of STORE, or bring it up to date.

    STORE is chosen as for search. The index is an ordinary FAISS file next to
    it, out.faiss for out.h5, with the store's ids. If there is one already, new
    rows are added to it and removed ones dropped.
    """
    ending.add(**update(open_store(store, ending), quiet=quiet, **settings))


def update(store: FeatureStore, *, quiet: bool, **settings: Any) -> dict[str, Any]:
    """Bring a store's index up to date and report it; return the report, ready for JSON."""
    from rn50feat.searching.index import index
    from rn50feat.searching.index_file import faiss_path

    name = faiss_path(store.path)

    def on_plan(plan: Plan) -> None:
        if not quiet:
            say(f"{name}: {report.plan_line(plan)}")

    with stages(quiet) as on_progress:
        done = index(store, on_plan=on_plan, on_progress=on_progress, **settings)
    if not quiet:
        say(f"{name}: {report.index_line(done)}")
        if done.advice:
            say(done.advice)
        mark_random(store)
    return report.index_facts(name, done)
