"""The command ``index``, and what ``extract --index`` does after a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rn50feat.cli import report
from rn50feat.cli.options import memory, option
from rn50feat.cli.stores import find_store, mark_random
from rn50feat.cli.terminal import say, stages, write

if TYPE_CHECKING:
    from rn50feat.indexing.index_plan import Plan


@click.command("index")
@click.argument("store", metavar="[STORE]", required=False, type=click.Path(path_type=Path))
@option("--metric", type=click.Choice(["cosine", "l2", "ip"]), help="To search by.  [default: as it is, or cosine]")
@option("--factory", metavar="TEXT", help="A FAISS factory string.  [default: as it is, or by size and --max-ram]")
@option("--max-ram", type=memory, metavar="SIZE", default="2G", show_default=True, help="Memory for building.")
@option(
    "--target-recall",
    type=click.FloatRange(0, 1),
    default=0.98,
    show_default=True,
    help="Recall@10 that a search must reach; decides into how many lists it looks.",
)
@option("--rebuild", is_flag=True, help="Build it anew.")
@option("--quiet", is_flag=True, help="Show no progress and no summary.")
@option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def command(store: Path | None, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Build the FAISS index of STORE, or bring it up to date.

    STORE is as for search. The index lies beside it: out.faiss for out.h5, an
    ordinary FAISS file whose ids are those of the store. Where there is one,
    what is new in the store is added and what is gone removed.
    """
    update(store or find_store(), quiet=quiet, as_json=as_json, **settings)


def update(path: Path, *, quiet: bool, as_json: bool = False, **settings: Any) -> None:
    """Bring the index of a store up to date, and tell of it."""
    from rn50feat.indexing.index import index
    from rn50feat.indexing.index_file import faiss_path
    from rn50feat.store import FeatureStore

    store, name = FeatureStore(path), faiss_path(path)

    def on_plan(plan: Plan) -> None:
        if not quiet:
            say(f"{name}: {report.plan_line(plan)}")

    with stages(quiet) as on_progress:
        done = index(store, on_plan=on_plan, on_progress=on_progress, **settings)
    if as_json:
        write(json.dumps(report.index_facts(name, done)) + "\n")
    if not quiet:
        say(f"{name}: {report.index_line(done)}")
        if done.rebuild_pays:
            say(f"the index was built for other rows: rn50feat index {path} --rebuild would pay")
        mark_random(store)
