"""The command ``info``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from rn50feat.cli import report
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import json_option, option, store_argument
from rn50feat.cli.stores import open_store
from rn50feat.cli.terminal import write


@click.command("info")
@store_argument
@option("--failures", is_flag=True, help="List the pictures that could not be read: path, reason, attempts.")
@json_option
@pass_ending
def command(ending: Ending, store: Path | None, failures: bool, as_json: bool) -> None:
    """Tell what STORE holds: rows, provenance, failures and its last runs.

    STORE is as for search.
    """
    opened = open_store(store, ending)
    facts = report.describe(opened)
    ledger = opened.failures() if failures else []
    ending.add(**facts)
    if failures:
        ending.add(failures_list=[dataclasses.asdict(failure) for failure in ledger])
    if not as_json:
        write(report.failure_lines(ledger) if failures else report.description(facts, opened))
