"""The command ``info``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from rn50feat.cli import report
from rn50feat.cli.options import option
from rn50feat.cli.stores import find_store
from rn50feat.cli.terminal import write


@click.command("info")
@click.argument("store", metavar="[STORE]", required=False, type=click.Path(path_type=Path))
@option("--failures", is_flag=True, help="List the pictures that could not be read: path, reason, attempts.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(store: Path | None, failures: bool, as_json: bool) -> None:
    """Tell what STORE holds: rows, provenance, failures and its last runs.

    STORE is as for search.
    """
    from rn50feat.store import FeatureStore

    opened = FeatureStore(store or find_store())
    facts = report.describe(opened)
    ledger = opened.failures() if failures else []
    if as_json:
        listed = {"failures_list": [dataclasses.asdict(failure) for failure in ledger]} if failures else {}
        write(json.dumps({**facts, **listed}, indent=2) + "\n")
    else:
        write(report.failure_lines(ledger) if failures else report.description(facts, opened.provenance))
