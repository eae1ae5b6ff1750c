"""Format groups of near-identical images, and pairs across groups, for people, pipes and programs.

Takes groups and returns an aligned table, tab-separated lines, CSV, names of
the files of a group but its first, or facts for JSON. Names are printed as in `report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rn50feat.cli.report import csv_lines
from rn50feat.errors import count, size
from rn50feat.escape import one_line

if TYPE_CHECKING:
    from rn50feat.searching.groups import Group, GroupImage, Groups, Pair
    from rn50feat.store.reader import FeatureStore

_SHOWN = 20  # pairs in a table of groups


def _mark(member: GroupImage, form: str) -> str:
    return form.format(member.state) if member.state in ("missing", "changed") else ""


def _likeness(member: GroupImage, number: int) -> str:
    """Say how a member relates to the first of its group; only what may be deleted is called a copy."""
    if member.state == "same file":
        return member.state
    return "copy" if number and member.is_copy else f"{member.similarity:.6f}"


def table(groups: Groups, *, verified: bool = False) -> str:
    """Format groups as aligned columns, one block per group, and the first pairs across them."""
    blocks = []
    for number, group in enumerate(groups, 1):
        frees = f" ({size(group.reclaimable)} reclaimable)" if group.reclaimable else ""
        lines = [
            f"group {number}{frees}",
            f"similarity      size       pixels  {'relation             ' if verified else ''}path",
        ]
        lines += [
            f"{_likeness(member, i):>10}  {size(member.size):>8}  {_pixels(member):>11}  "
            + (f"{member.relation or '':<19}  " if verified else "")
            + one_line(member.path)
            + _mark(member, "  ({})")
            for i, member in enumerate(group.members)
        ]
        blocks.append("\n".join(lines) + "\n")
    if groups.pairs:
        more = len(groups.pairs) - _SHOWN
        tail = f"and {more} more: --pairs prints all\n" if more > 0 else ""
        blocks.append("near-identical, but in different groups\n" + pairs_table(groups.pairs[:_SHOWN]) + tail)
    return "\n".join(blocks)


def _pixels(member: GroupImage) -> str:
    return f"{member.width}x{member.height}" if member.width else ""


def pairs_table(pairs: Sequence[Pair]) -> str:
    """Format pairs as aligned columns, two lines per pair."""
    lines = ["similarity  group  path"]
    for pair in pairs:
        for likeness, image in zip((f"{pair.similarity:.6f}", ""), pair.images):
            lines.append(f"{likeness:>10}  {image.group or '-':>5}  {one_line(image.path)}")
    return "\n".join(lines) + "\n"


def tab_separated(groups: Sequence[Group], *, verified: bool = False) -> str:
    """Format a line per image: group, similarity (or copy or same file), size in bytes, path, and its state.

    If they are `verified`, the state is always there, and the relation follows.
    """

    def more(member: GroupImage) -> str:
        return f"\t{_mark(member, '{}')}\t{member.relation or ''}" if verified else _mark(member, "\t{}")

    return "".join(
        f"{number}\t{_likeness(member, i)}\t{member.size}\t{one_line(member.path)}{more(member)}\n"
        for number, group in enumerate(groups, 1)
        for i, member in enumerate(group.members)
    )


def pairs_tab_separated(pairs: Iterable[Pair]) -> str:
    """Format a line per pair: similarity, and the group, empty if there is none, and the path of each image."""
    return "".join(
        "\t".join(
            [f"{pair.similarity:.6f}", *(f"{image.group or ''}\t{one_line(image.path)}" for image in pair.images)]
        )
        + "\n"
        for pair in pairs
    )


def comma_separated(groups: Sequence[Group]) -> str:
    """Format groups as CSV with a header."""
    names = ["group", "path", "location", "id", "size", "similarity", "exact", "state", "width", "height", "kept"]
    names.append("relation")
    rows = ([number, *asdict(member).values()] for number, group in enumerate(groups, 1) for member in group.members)
    return csv_lines(names, rows)


def pairs_comma_separated(pairs: Iterable[Pair]) -> str:
    """Format pairs as CSV with a header."""
    names = [f"{name}_{i}" for i in (1, 2) for name in ("path", "location", "id", "size", "group")]
    rows = ([pair.similarity, *(v for image in pair.images for v in asdict(image).values())] for pair in pairs)
    return csv_lines(["similarity", *names], rows)


def rest(groups: Sequence[Group], *, null: bool) -> str:
    """Format the locations of all images in ``Group.rest``, each ended by a NUL, or else by a line break."""
    return "".join(member.location + ("\0" if null else "\n") for member in _listed(groups, null))


def _listed(groups: Sequence[Group], null: bool) -> list[GroupImage]:
    """Return the images in ``Group.rest``, on lines only those whose names are printed as they are.

    An escaped name could be the name of another file.
    """
    images = [member for group in groups for member in group.rest]
    return [image for image in images if null or image.location == one_line(image.location)]


def rest_line(groups: Sequence[Group], *, null: bool) -> str:
    """Summarize in one line which images are printed, and why others are left out."""
    kept = Counter[str](member.kept for group in groups for member in group.members[1:])
    listed = _listed(groups, null)
    kept["name needs -0"] = kept.pop("", 0) - len(listed)
    left = ", ".join(f"{number} ({reason})" for reason, number in sorted(kept.items()) if number)
    freed = f"{count(len(listed), 'file')}, {size(sum(image.size for image in listed))}"
    return f"{freed}; left out: {left}" if left else freed


def rest_warning(groups: Sequence[Group], *, null: bool) -> str:
    """Say how many of the images that are printed are no copies; "" for none."""
    others = [image for image in _listed(groups, null) if not image.exact]
    if not others:
        return ""
    are = f"{len(others)} of them {'is not a copy' if len(others) == 1 else 'are not copies'} of the first image"
    relations = sorted(Counter(image.relation for image in others if image.relation).items())
    if relations:
        return f"{are}: " + ", ".join(f"{number} {relation}" for relation, number in relations)
    return f"{are}, only similar to it: look before you delete, or use --exact or --verify"


def facts(groups: Groups, store: FeatureStore, threshold: float | None, *, verified: bool) -> dict[str, Any]:
    """Return the groups, ready for JSON, with the weights that similarities depend on; copies have no threshold."""
    return {
        "weights": store.provenance.weights,
        "threshold": threshold,
        "groups": [{**asdict(group), "reclaimable": group.reclaimable} for group in groups],
        "reclaimable": _reclaimable(groups),
        "pairs": [asdict(pair) for pair in groups.pairs],
        "more_pairs": groups.more_pairs,
        "verified": verified,
        "uncompared": groups.uncompared,
    }


def line(groups: Groups) -> str:
    """Summarize the groups in one line."""
    more = sum(group.redundant for group in groups)
    same = sum(member.state == "same file" for group in groups for member in group.members)
    copies = sum(member.is_copy for group in groups for member in group.members[1:])
    are = f", {copies} of them {'a copy' if copies == 1 else 'copies'}" if copies else ""
    parts = [f"{count(len(groups), 'group')}, {count(more, 'more image')}{are}"]
    if same:
        parts.append(f"{count(same, 'other path')} to the same files")
    if freed := _reclaimable(groups):
        parts.append(f"{size(freed)} reclaimable")
    if groups.pairs:
        left = f", and up to {groups.more_pairs} more" if groups.more_pairs else ""
        parts.append(f"{count(len(groups.pairs), 'near pair')} across groups (--pairs){left}")
    if groups.uncompared:
        parts.append(f"{count(groups.uncompared, 'image')} not compared: missing, changed or not readable")
    return "; ".join(parts)


def _reclaimable(groups: Iterable[Group]) -> int:
    return sum(group.reclaimable for group in groups)
