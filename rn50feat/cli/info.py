"""The command ``info``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from rn50feat.cli import report
from rn50feat.cli.description import describe
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import json_option, option, store_argument
from rn50feat.cli.stores import open_store
from rn50feat.cli.terminal import columns, write


@click.command("info")
@store_argument
@option(
    "--failures",
    is_flag=True,
    help="List failed and damaged images: path, reason, attempts.",
)
@json_option
@pass_ending
def command(ending: Ending, store: Path | None, failures: bool, as_json: bool) -> None:
    """Show what STORE holds: rows, provenance, failures and recent runs.

    STORE is chosen as for search.
    """
    from rn50feat.store.damage_notes import damaged as damaged_images

    opened = open_store(store, ending)
    facts = describe(opened)
    ending.add(**facts)
    if failures:
        ledger, damaged = opened.failures(), damaged_images(opened)
        ending.add(failures_list=[dataclasses.asdict(failure) for failure in ledger])
        ending.add(damaged_list=[dataclasses.asdict(image) for image in damaged])
        words = report.failure_lines(ledger) + report.damage_lines(damaged)
    else:
        words = report.description(facts, opened, columns())
    if not as_json:
        write(words)
