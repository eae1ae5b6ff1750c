"""Draw the network as SVG figures, without scripts.

Takes blocks, or the whole `Structure`, and returns SVG elements. A tensor is a
bar, taller the more channels it has; a convolution is the wedge between two of
them; a shortcut is the line above. Each figure is also described in words, for
readers who cannot see it. Colours come from diagram.css, by class.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import log2

from rn50feat.model.structure import Block, Convolution, Structure

POOLS = {"all sides": "padded on all sides", "end": "padded at the right and below", "none": "not padded"}


@dataclass(frozen=True)
class Alike:
    """Consecutive blocks that look alike, and the first one's input: its channels, and the side of its map."""

    blocks: tuple[Block, ...]
    channels: int
    side: int


# Positions in the figure of a block: four tensors, and the sum before the last one.
_BARS, _BAR, _SUM, _MIDDLE, _SHORTCUT = (18, 116, 214, 350), 8, 326, 138, 34


def bottleneck(drawn: Alike) -> str:
    """Draw a bottleneck block."""
    block, name = drawn.blocks[0], f"{drawn.blocks[0].stage}-{drawn.blocks[0].number}"
    sizes = [(drawn.channels, drawn.side), *((layer.channels_out, layer.side) for layer in block.convolutions)]
    bars = "".join(_bar(x, channels, side) for x, (channels, side) in zip(_BARS, sizes))
    ends = (*_BARS[1:3], _SUM - 14)
    wedges = "".join(_wedge(_BARS[i] + _BAR, ends[i], layer) for i, layer in enumerate(block.convolutions))
    top = _MIDDLE - _height(drawn.channels) / 2
    x = _BARS[0] + _BAR / 2
    line = f"M{x} {top:g}V{_SHORTCUT + 8}Q{x} {_SHORTCUT} {x + 8} {_SHORTCUT}H{_SUM - 8}"
    line += f"Q{_SUM} {_SHORTCUT} {_SUM} {_SHORTCUT + 8}V{_MIDDLE - 11}"
    return (
        f'<svg viewBox="0 0 376 222" role="img" aria-labelledby="{name}-t" aria-describedby="{name}-d">'
        f'<title id="{name}-t">{_title(drawn)}</title><desc id="{name}-d">{_described(drawn)}</desc>'
        f'<path class="line" d="{line}"/><path class="line" d="M{_SUM + 10} {_MIDDLE}H{_BARS[3]}"/>'
        f'<path class="tip" d="M{_SUM - 5} {_MIDDLE - 18}h10l-5 8z"/>'
        f"{_on_shortcut(block)}{wedges}{bars}"
        f'<circle class="sum" cx="{_SUM}" cy="{_MIDDLE}" r="10"/>'
        f'<path class="plus" d="M{_SUM - 5} {_MIDDLE}h10M{_SUM} {_MIDDLE - 5}v10"/></svg>'
    )


def _title(drawn: Alike) -> str:
    first, last = drawn.blocks[0], drawn.blocks[-1]
    numbers = f"block {first.number}" if first is last else f"blocks {first.number} to {last.number}"
    return f"{first.stage}, {numbers}: bottleneck with {first.shortcut} shortcut"


def _height(channels: int) -> float:
    return 44 + 14 * (log2(channels) - 6)


def _bar(x: float, channels: int, side: int) -> str:
    height = _height(channels)
    return (
        f'<rect class="bar" x="{x}" y="{_MIDDLE - height / 2:g}" width="{_BAR}" height="{height:g}" rx="2"/>'
        f'<text x="{x + _BAR / 2}" y="206" class="count">{channels}</text>'
        f'<text x="{x + _BAR / 2}" y="219" class="small">{side}×{side}</text>'
    )


def _wedge(left: float, right: float, layer: Convolution) -> str:
    """Draw a convolution between the edges of two bars, as tall as they are on either side."""
    a, b = (_height(channels) / 2 - 3 for channels in (layer.channels_in, layer.channels_out))
    x, y = left + 3, right - 3
    corners = f"{x},{_MIDDLE - a:g} {y},{_MIDDLE - b:g} {y},{_MIDDLE + b:g} {x},{_MIDDLE + a:g}"
    role = layer.roles[0] if layer.roles else "spatial"
    return f'<polygon class="{role}" points="{corners}"/>{_words(layer, (left + right) / 2, _MIDDLE)}'


def _on_shortcut(block: Block) -> str:
    """Draw what is on the shortcut's line: a convolution, or the word identity."""
    x = (_BARS[0] + _SUM) / 2
    if block.projection:
        box = f'<rect class="match" x="{x - 62:g}" y="{_SHORTCUT - 24}" width="124" height="44" rx="6"/>'
        return box + _words(block.projection, x, _SHORTCUT - 2)
    gap = f'<rect class="gap" x="{x - 32:g}" y="{_SHORTCUT - 10}" width="64" height="34"/>'
    words = f'{gap}<text x="{x:g}" y="{_SHORTCUT + 4}">identity</text>'
    if block.shortcut_stride > 1:
        words += f'<text class="halved" x="{x:g}" y="{_SHORTCUT + 18}">stride {block.shortcut_stride}</text>'
    return words


def _words(layer: Convolution, x: float, y: float) -> str:
    """Write a convolution's kernel and role, and its stride if that halves the map, centred at a point."""
    lines = [("strong", f"{layer.kernel}×{layer.kernel}"), *(("role", role) for role in layer.roles[:1])]
    if layer.stride > 1:
        lines.append(("halved", layer.roles[-1] if layer.roles else "stride 2"))
    top = y - 6.5 * len(lines) + 10.5
    return "".join(
        f'<text class="{kind}" x="{x:g}" y="{top + 13 * i:g}">{text}</text>' for i, (kind, text) in enumerate(lines)
    )


def tower(network: Structure) -> str:
    """Draw the whole network: a bar for each map, whose width is the map's side and thickness its channels."""
    stem, pool = network.stem, network.pool
    maps = [("image", 3, network.side), ("conv1, 7×7", stem.channels_out, stem.side)]
    maps.append((f"max-pool, {pool.kernel}×{pool.kernel}", stem.channels_out, pool.side))
    for stage, members in groupby(network.blocks, key=lambda block: block.stage):
        blocks = tuple(members)
        last = blocks[-1].convolutions[-1]
        maps.append((f"{stage}, {len(blocks)} blocks", last.channels_out, last.side))
    maps.append(("average pool", network.features, 1))
    drawn, y = [], 4.0
    for name, channels, side in maps:
        thick, width = 6 + 3 * log2(channels), max(2.0, 0.75 * side)
        middle = y + thick / 2
        drawn.append(
            f'<rect class="map" x="{196 - width / 2:g}" y="{y:g}" width="{width:g}" height="{thick:g}" rx="2"/>'
            f'<text class="start" x="0" y="{middle + 4:g}">{name}</text>'
            f'<text class="end" x="400" y="{middle + 4:g}">{channels} × {side}×{side}</text>'
        )
        y += thick + 8
    described = "; ".join(f"{name}: {channels} channels of {side}×{side}" for name, channels, side in maps)
    return (
        f'<svg viewBox="0 0 400 {y:g}" role="img" aria-labelledby="tower-t" aria-describedby="tower-d">'
        f'<title id="tower-t">The maps from the image to its features</title><desc id="tower-d">{described};'
        f" the max-pool is {POOLS[pool.padding]}.</desc>{''.join(drawn)}</svg>"
    )


def _described(drawn: Alike) -> str:
    """Describe a block in words."""
    block = drawn.blocks[0]
    parts = [f"The input has {drawn.channels} channels of {drawn.side}×{drawn.side}."]
    for layer in block.convolutions:
        role = f" to {' and '.join(layer.roles)}" if layer.roles else ""
        stride = ", stride 2" if layer.stride > 1 else ""
        size = f"{layer.channels_out} channels of {layer.side}×{layer.side}"
        parts.append(f"A {layer.kernel}×{layer.kernel}{role}{stride}: {size}.")
    if block.projection:
        parts.append(f"A projection shortcut bypasses them: a 1×1 to {' and '.join(block.projection.roles)}.")
    elif block.shortcut_stride > 1:
        parts.append("An identity shortcut of every second row and column bypasses them.")
    else:
        parts.append("An identity shortcut bypasses them.")
    return " ".join(parts)
