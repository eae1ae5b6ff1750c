"""Format groups of near-identical images for people, pipes and programs.

Takes groups and returns an aligned table, tab-separated lines, CSV, or facts
for JSON. Names are printed as in `report`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rn50feat.errors import count, size
from rn50feat.escape import one_line

if TYPE_CHECKING:
    from rn50feat.searching.groups import Group, GroupImage
    from rn50feat.store.reader import FeatureStore


def _mark(member: GroupImage, form: str) -> str:
    return form.format(member.state) if member.state in ("missing", "changed") else ""


def _likeness(member: GroupImage, number: int) -> str:
    """Say how a member relates to the first of its group; only what may be deleted is called a copy."""
    if member.state == "same file":
        return member.state
    return "copy" if number and member.is_copy else f"{member.similarity:.6f}"


def table(groups: Sequence[Group]) -> str:
    """Format groups as aligned columns, one block per group."""
    blocks = []
    for number, group in enumerate(groups, 1):
        lines = [f"group {number}", "similarity      size  path"]
        lines += [
            f"{_likeness(member, i):>10}  {size(member.size):>8}  {one_line(member.path)}{_mark(member, '  ({})')}"
            for i, member in enumerate(group.members)
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def tab_separated(groups: Sequence[Group]) -> str:
    """Format a line per image: group, similarity (or copy or same file), size in bytes, path, and its state."""
    return "".join(
        f"{number}\t{_likeness(member, i)}\t{member.size}\t{one_line(member.path)}{_mark(member, chr(9) + '{}')}\n"
        for number, group in enumerate(groups, 1)
        for i, member in enumerate(group.members)
    )


def comma_separated(groups: Sequence[Group]) -> str:
    """Format groups as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "path", "location", "id", "size", "similarity", "exact", "state"])
    for number, group in enumerate(groups, 1):
        writer.writerows([number, *asdict(member).values()] for member in group.members)
    return text.getvalue()


def facts(groups: Sequence[Group], store: FeatureStore, threshold: float | None) -> dict[str, Any]:
    """Return the groups, ready for JSON, with the weights that similarities depend on; copies have no threshold."""
    context = {"weights": store.provenance.weights, "threshold": threshold}
    return {**context, "groups": [asdict(group) for group in groups]}


def line(groups: Sequence[Group]) -> str:
    """Summarize the groups in one line."""
    more = sum(group.redundant for group in groups)
    same = sum(member.state == "same file" for group in groups for member in group.members)
    paths = f"; {count(same, 'other path')} to the same files" if same else ""
    return f"{count(len(groups), 'group')}, {count(more, 'redundant copy', 'redundant copies')}{paths}"
