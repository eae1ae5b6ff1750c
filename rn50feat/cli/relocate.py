"""The command ``relocate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import argument, json_option, option, store_argument
from rn50feat.cli.stores import open_store
from rn50feat.cli.terminal import say
from rn50feat.errors import count, invocation

if TYPE_CHECKING:
    from rn50feat.extraction.relocate import Relocated


@click.command("relocate", no_args_is_help=True)
@argument("old", metavar="OLD", missing="name the folder, archive or URL where the images were")
@argument("new", metavar="NEW", missing="name the folder, archive or URL where the images are now")
@store_argument
@option("--apply", is_flag=True, help="Change the paths, instead of only saying what would change.")
@json_option
@pass_ending
def command(ending: Ending, old: str, new: str, store: Path | None, apply: bool, as_json: bool) -> None:
    """Change the paths of images that have moved from OLD to NEW: their rows keep ids and features.

    OLD and NEW are folders, files, archives or URLs; OLD need not exist any
    more. Without --apply, only says what would change. An image that already
    has a row in NEW keeps the older of its two rows. STORE is chosen as for
    search.
    """
    from rn50feat.extraction.relocate import relocate as run
    from rn50feat.store.reader import SUFFIXES

    if store is None and new.endswith(SUFFIXES):
        raise click.UsageError("Missing argument 'NEW': name the folder, archive or URL where the images are now.")
    path = open_store(store, ending).path
    done = run(old, new, path, apply=apply)
    ending.add(**dataclasses.asdict(done))
    for line in _lines(done):
        say(f"{path}: {line}")
    if not apply:
        say(f"nothing has changed yet: {relocation(done.old, done.new, path)} --apply")


def relocation(old: str, new: str, store: Path) -> str:
    """Return the command that relocates, as text for a shell."""
    return invocation("relocate", old, new, store)


def _lines(done: Relocated) -> list[str]:
    parts = [(done.rows, "row"), (done.failures, "failure"), (done.archives, "archive record")]
    what = " and ".join(count(number, name) for number, name in parts if number) or "0 rows"
    before, after = done.example
    there = "" if done.missing is None else f"; {done.rows - done.missing} of {done.rows} exist there"
    lines = [f"{what} {'got' if done.applied else 'would get'} new paths, for example {before} → {after}{there}"]
    if done.removed:
        verb = "were" if done.applied else "would be"
        lines.append(f"{count(done.removed, 'row')} {verb} removed: others of the same images, or newer ones, stay")
    if done.left:
        verb = "kept" if done.applied else "would keep"
        lines.append(f"{count(done.left, 'row')} {verb} their old paths: other images have rows in the new place")
    if done.still:
        lines.append(f"{count(done.still, 'image')} can still be found in {done.old}")
    return lines
