"""Show the network as a page: figures of its stages and blocks, and a table for each stage.

Takes a `Structure` and yields the pieces of an HTML page, which needs no script
and no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from rn50feat.model.structure import Block, Convolution, Structure
from rn50feat.pages.figures import Alike, bottleneck, tower
from rn50feat.pages.page import page, style

ROLES = {
    "reduce": "Comes first in every block and reduces the channels, so that the 3×3 in the middle is cheap."
    " In the very first block there are only 64 to begin with.",
    "restore": "Comes last in every block and raises the channels again, to match the shortcut.",
    "match": "Is on the projection shortcut of a stage's first block, and gives it the channels of the block's output.",
    "downsample": "Has a stride of 2, so that it reads every second row and column, and halves the map.",
}
HEADINGS = ("layer", "kernel", "stride", "channels", "output", "parameters", "multiply-adds", "role of a 1×1")


def pieces(network: Structure, facts: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
    """Yield the pieces of the page; `facts` (name, value) go above it, such as the weights."""
    totals = (
        ("image", f"{network.side}×{network.side}"),
        ("features", f"{network.features}"),
        ("parameters", f"{network.parameters:,} ({network.parameters_with_fc:,} with fc)"),
        ("multiply-adds", f"{_count(network.multiply_adds)} ({_count(network.multiply_adds_with_fc)} with fc)"),
        ("batch norm epsilon", f"{network.epsilon:g}"),
    )
    named = [(name, value) for name, value in facts if name not in ("", "network")]
    return page(f"ResNet50: {network.network}", _body(network), facts=(*totals, *named), css=style("diagram.css"))


def _body(network: Structure) -> Iterator[str]:
    yield '<div class="opening">\n<section aria-labelledby="whole"><h2 id="whole">From image to features</h2>\n'
    yield "<p>Each bar is as wide as its map, and thicker the more channels it has.</p>\n"
    yield f"<figure>{tower(network)}</figure></section>\n"
    yield '<section aria-labelledby="roles"><h2 id="roles">What the 1×1 convolutions do</h2>\n'
    yield f'<dl class="roles">{"".join(_role(name, network) for name in ROLES)}</dl></section>\n</div>\n'
    channels, side = network.stem.channels_out, network.pool.side
    for stage, members in groupby(network.blocks, key=lambda block: block.stage):
        blocks = tuple(members)
        yield from _stage(stage, blocks, channels, side)
        channels, side = blocks[-1].convolutions[-1].channels_out, blocks[-1].convolutions[-1].side


def _stage(stage: str, blocks: tuple[Block, ...], channels: int, side: int) -> Iterator[str]:
    last = blocks[-1].convolutions[-1]
    yield f'<section aria-labelledby="{stage}"><h2 id="{stage}">{stage}</h2>\n'
    yield f"<p>{len(blocks)} blocks; the output has {last.channels_out} channels of {last.side}×{last.side}.</p>\n"
    yield '<div class="blocks">\n'
    for drawn in _alike(blocks, channels, side):
        yield f"<figure>{bottleneck(drawn)}<figcaption>{_caption(drawn)}</figcaption></figure>\n"
    yield "</div>\n<details><summary>All layers of this stage</summary>\n"
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="All layers of {stage}"><table>\n'
    columns = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    yield f"<tr>{columns}</tr>\n"
    yield from (_row(layer) for block in blocks for layer in block.layers)
    yield "</table></div></details></section>\n"


def _row(layer: Convolution) -> str:
    cells = (
        f"{layer.kernel}×{layer.kernel}",
        f"{layer.stride}",
        f"{layer.channels_in} → {layer.channels_out}",
        f"{layer.side}×{layer.side}",
        f"{layer.parameters:,}",
        f"{layer.multiply_adds:,}",
        " and ".join(layer.roles),
    )
    return f'<tr><th scope="row">{layer.name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'


def _role(name: str, network: Structure) -> str:
    layers = [layer for block in network.blocks for layer in block.layers if name in layer.roles]
    parameters, adds = (sum(getattr(layer, what) for layer in layers) for what in ("parameters", "multiply_adds"))
    cost = f"{len(layers)} of them: {parameters:,} parameters, {_count(adds)} multiply-adds"
    if not layers:
        cost = "None in this network: its 3×3 convolutions do that."
    return f'<div><dt><span class="swatch {name}"></span>{name}</dt><dd>{ROLES[name]} <span>{cost}</span></dd></div>\n'


def _alike(blocks: tuple[Block, ...], channels: int, side: int) -> Iterator[Alike]:
    """Group the blocks of a stage that differ only by their number."""

    def look(block: Block) -> tuple[object, ...]:
        return block.shortcut_stride, *((layer.stride, layer.channels_in, layer.side) for layer in block.layers)

    for _, members in groupby(blocks, key=look):
        found = tuple(members)
        yield Alike(found, channels, side)
        channels, side = found[-1].convolutions[-1].channels_out, found[-1].convolutions[-1].side


def _caption(drawn: Alike) -> str:
    numbers = [block.number for block in drawn.blocks]
    which = f"Block {numbers[0]}" if len(numbers) == 1 else f"Blocks {numbers[0]} to {numbers[-1]}"
    block = drawn.blocks[0]
    cost = _count(sum(layer.multiply_adds for layer in block.layers))
    each = "" if len(numbers) == 1 else " each"
    return f"<strong>{which}</strong>: {block.shortcut} shortcut, {cost} multiply-adds{each}"


def _count(number: int) -> str:
    return f"{number / 1e9:.3f} G" if number >= 1e9 else f"{number / 1e6:.0f} M"
