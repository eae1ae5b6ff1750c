"""The command ``model``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rn50feat.cli import report
from rn50feat.cli.ending import Ending, pass_ending
from rn50feat.cli.options import json_option, option, page_file
from rn50feat.cli.terminal import columns, say, write
from rn50feat.model.variants import VARIANTS

if TYPE_CHECKING:
    from rn50feat.model.structure import Convolution, Structure

HEADINGS = "stage block shortcut layer kernel stride channels output parameters multiply-adds role".split()


@click.command("model")
@option("--weights", help="Weights whose network to show: imagenet-v1, imagenet-v2, a file or random[:SEED].")
@option(
    "--variant",
    type=click.Choice(list(VARIANTS)),
    help="Network to show.  [default: that of the weights, else torchvision]",
)
@json_option
@option("--html", type=page_file, metavar="FILE", help="Write FILE, an HTML page with figures, instead of a table.")
@pass_ending
def command(ending: Ending, weights: str | None, variant: str | None, as_json: bool, html: Path | None) -> None:
    """Show the network: its stages and blocks, and what each 1x1 convolution does.

    Weights are optional: if given, they are checked, and determine the variant.
    """
    from rn50feat.model import network as networks
    from rn50feat.model.structure import structure
    from rn50feat.model.variants import TORCHVISION, named, recorded
    from rn50feat.model.weights import Choices, settle

    if as_json and html:
        raise click.UsageError("--json and --html cannot be combined: choose one.")
    origin, chosen = None, named(variant) if variant else TORCHVISION
    if weights:
        found, origin = settle(Choices(weights, variant), None)
        chosen = recorded(origin.network)
        if found.path is None or found.path.exists():  # nothing is downloaded for a table
            networks.state(found, chosen)
    network = structure(chosen)
    facts = [] if origin is None else report.provenance_lines(origin)
    if html:
        from rn50feat.pages import diagram, page

        page.save(html, diagram.pieces(network, facts))
        say(f"{html}: figures of {network.network}")
    elif as_json:
        known = {} if origin is None else {"provenance": json.loads(origin.to_json())}
        ending.add(**known, **dataclasses.asdict(network))
    else:
        write(_text(network, facts))


def _text(network: Structure, facts: list[tuple[str, str]]) -> str:
    """Format the network as a table, one line per layer, with totals."""
    lines = [HEADINGS, *_rows(network)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = "".join("  ".join(map(_aligned, line, widths, HEADINGS)).rstrip() + "\n" for line in lines)
    above = report.named_lines(facts or [("network", network.network)], columns())
    totals = [
        ("to avgpool", network.parameters, network.multiply_adds),
        ("with fc", network.parameters_with_fc, network.multiply_adds_with_fc),
    ]
    below = "".join(
        f"{name:10}  {parameters:10,} parameters  {adds / 1e9:.3f} G multiply-adds for {network.side}x{network.side}\n"
        for name, parameters, adds in totals
    )
    return f"{above}\n{table}\n{below}"


def _aligned(text: str, width: int, heading: str) -> str:
    return text.rjust(width) if heading in ("parameters", "multiply-adds", "output") else text.ljust(width)


def _rows(network: Structure) -> Iterator[list[str]]:
    """Yield the cells of each line; a block's number and shortcut are in its first line."""
    pool = network.pool
    yield ["conv1", "", "", *_cells(network.stem)]
    size = f"{pool.side}x{pool.side}"
    padding = {"all sides": "pad 1", "end": "pad 1 at the end", "none": "no padding"}[pool.padding]
    yield ["", "", "", f"max-pool, {padding}", f"{pool.kernel}x{pool.kernel}", str(pool.stride), "", size, "", "", ""]
    for block in network.blocks:
        first = [block.stage if block.number == 1 else "", str(block.number)]
        shortcut = block.shortcut if block.shortcut_stride == 1 else f"{block.shortcut}, stride {block.shortcut_stride}"
        for i, layer in enumerate(block.layers):
            yield [*(first if i == 0 else ["", ""]), shortcut if i == 0 else "", *_cells(layer)]


def _cells(layer: Convolution) -> list[str]:
    return [
        layer.name,
        f"{layer.kernel}x{layer.kernel}",
        str(layer.stride),
        f"{layer.channels_in} -> {layer.channels_out}",
        f"{layer.side}x{layer.side}",
        f"{layer.parameters:,}",
        f"{layer.multiply_adds:,}",
        " and ".join(layer.roles),
    ]
