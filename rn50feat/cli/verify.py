"""The command ``verify``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import (
    IntegerRange,
    engine_options,
    json_option,
    moved_weights_option,
    option,
    store_argument,
    typed,
)
from rn50feat.cli.stores import open_store
from rn50feat.cli.terminal import downloads, say, write
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import VerifyError, count, invocation
from rn50feat.escape import one_line
from rn50feat.store.damage import LAST_REMEDY, remedy

if TYPE_CHECKING:
    from rn50feat.extraction.verify import Findings


@click.command("verify")
@store_argument
@option("--sources", is_flag=True, help="Hash the image files again, and compare.")
@option("--recompute", type=IntegerRange(0), default=0, metavar="N", help="Compute N random rows again, and compare.")
@moved_weights_option
@engine_options
@json_option
@pass_ending
def command(
    ending: Ending,
    store: Path | None,
    sources: bool,
    recompute: int,
    weights: str | None,
    as_json: bool,
    **engine: Any,
) -> None:
    """Check that STORE is intact; if not, say what is wrong and exit with 1.

    STORE is chosen as for search. All datasets must agree, and every row must
    be readable, finite and not all zero.
    """
    from rn50feat.extraction.verify import verify as run

    if typed("weights") and not recompute:
        raise click.UsageError("--weights requires --recompute.")
    opened = open_store(store, ending)
    with downloads() as on_download:
        result = run(
            opened,
            sources=sources,
            recompute=recompute,
            weights_file=weights,
            options=EngineOptions(**engine),
            on_download=on_download,
        )
    ending.add(rows=len(opened), **dataclasses.asdict(result))
    for finding in () if as_json else result.findings:
        write(f"{one_line(finding)}\n")
    for note in result.notes:
        say(note)
    if result.findings:
        raise VerifyError(_advice(opened.path, result))
    say(f"{opened.path}: {count(len(opened), 'row')}, no faults found")


def _advice(store: Path, result: Findings) -> str:
    """Say how to fix the faults in a store, and one in its index."""
    words = []
    if faults := len(result.findings) - result.index_fault:
        fix = LAST_REMEDY
        if result.unreadable:
            fix = remedy(store)
        elif result.differing:
            heal = invocation("extract", "SOURCE...", store, "--heal")
            fix = f"run {heal}, which computes damaged rows again from their images"
        words.append(f"{store} has {count(faults, 'fault')}: {fix}")
    if result.index_fault:
        words.append(f"the index of {store} is faulty: build it again with {invocation('index', store, '--rebuild')}")
    return "; ".join(words)
