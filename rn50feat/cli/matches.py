"""Format what `compare` finds for people, pipes and programs.

Takes a `Comparison` and returns an aligned table, tab-separated lines, CSV,
NUL-separated locations, or facts for JSON: of the images that are in the first
store, or else of the new ones. Names are printed as in `report`.
"""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any

from rn50feat.cli.report import csv_lines
from rn50feat.errors import count
from rn50feat.escape import one_line

if TYPE_CHECKING:
    from rn50feat.searching.comparison import Comparison
    from rn50feat.store.reader import FeatureStore


def table(found: Comparison, *, new: bool) -> str:
    """Format matches as aligned columns, two lines each, or the new images, one path per line."""
    if new:
        return "".join(f"{one_line(image.path)}\n" for image in found.new)
    lines = ["similarity  relation             images"] if found.found else []
    for match in found.found:
        lines.append(f"{match.similarity:>10.6f}  {match.label:<19}  {one_line(match.image.path)}")
        lines.append(f"{'':>10}  {'':<19}  = {one_line(match.original.path)}")
    return "".join(f"{line}\n" for line in lines)


def tab_separated(found: Comparison, *, new: bool) -> str:
    """Format a line per match: similarity, relation, path, and the path in the first store; or one per new image."""
    if new:
        return table(found, new=True)
    return "".join(
        f"{match.similarity:.6f}\t{match.label}\t{one_line(match.image.path)}\t{one_line(match.original.path)}\n"
        for match in found.found
    )


def comma_separated(found: Comparison, *, new: bool) -> str:
    """Format matches, or the new images, as CSV with a header."""
    fields = ["path", "location", "id", "size"]
    if new:
        return csv_lines(fields, map(astuple, found.new))
    names = ["similarity", "relation", *fields, *(f"original_{name}" for name in fields)]
    rows = ([one.similarity, one.label, *astuple(one.image), *astuple(one.original)] for one in found.found)
    return csv_lines(names, rows)


def nul_separated(found: Comparison, *, new: bool) -> str:
    """Format the locations of the images in the second store, each ended by a NUL."""
    images = found.new if new else [match.image for match in found.found]
    return "".join(f"{image.location}\0" for image in images)


def facts(found: Comparison, first: FeatureStore, threshold: float | None, *, verified: bool) -> dict[str, Any]:
    """Return everything, ready for JSON, with what it depends on; copies have no threshold."""
    return {
        "first": str(first.path),
        "weights": first.provenance.weights,
        "threshold": threshold,
        "verified": verified,
        "images": found.total,
        "copies": found.copies,
        "found": [{**asdict(match), "relation": match.label} for match in found.found],
        "new": [asdict(image) for image in found.new],
        "uncompared": [asdict(image) for image in found.uncompared],
    }


def line(found: Comparison, first: FeatureStore, second: FeatureStore) -> str:
    """Summarize a comparison in one line."""
    near = len(found.found) - found.copies
    parts = [f"{len(found.found):,} in {first.path.name}"]
    if found.found:
        parts[0] += f" ({count(found.copies, 'copy', 'copies')}, {near:,} near-identical)"
    parts.append(f"{len(found.new):,} not in it")
    if found.uncompared:
        parts.append(f"{len(found.uncompared):,} not compared: missing, changed or not readable")
    return f"{count(found.total, 'image')} of {second.path.name}: {'; '.join(parts)}"
