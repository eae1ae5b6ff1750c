"""Show images on a page: queries next to their hits, and groups of near-identical images.

Takes the results of `search` and `duplicates`, and yields the pieces of one HTML
page with thumbnails inside, for `page.save`. They are made as they are needed,
so that the memory for a page does not grow with its length.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import count
from rn50feat.errors import size as bytes_in_words
from rn50feat.pages.cards import Cards, marked
from rn50feat.pages.page import escape, page, style
from rn50feat.pages.thumbnails import SIDE, SMALL, Thumbnail, thumbnails
from rn50feat.searching.groups import Group, GroupImage, Groups, Pair, PairImage
from rn50feat.searching.queries import Box
from rn50feat.searching.search import Hit, Result
from rn50feat.sources.presence import readable
from rn50feat.store.reader import FeatureStore

_SCORES = {
    "cosine": "cosine, 1 for the same direction",
    "l2": "L2 distance, 0 for the same features",
    "ip": "inner product, higher is more similar",
}
_STATES = {
    "missing": "the file is gone",
    "changed": "the file has changed since it was extracted",
    "same file": "another path to a file above, not a copy",
}
MOST_IMAGES = 1000  # in the groups of a page, which then has 4.4 MB
MOST_PAIRS = 100  # on a page: the most similar ones
_MOST_SHARP = 200  # images: a page of more has smaller thumbnails
_UNREAD = Thumbnail(b"", "is in remote storage: use --check to show it")


@dataclass(frozen=True)
class Scale:
    """The scores that empty and full bars stand for; `full` is above `empty` unless all scores are equal."""

    empty: float
    full: float

    def bar(self, score: float) -> str:
        """Draw a thin bar for a score; screen readers skip it and read the number next to it."""
        share = (score - self.empty) / (self.full - self.empty) if self.full > self.empty else 1.0
        return (
            '<svg class="bar" width="100%" height="3" aria-hidden="true">'
            f'<rect width="{100 * min(max(share, 0.0), 1.0):.2f}%" height="3"/></svg>\n'
        )


def search_page(
    results: Sequence[Result],
    locations: Sequence[str],
    store: FeatureStore,
    *,
    out: Path,
    k: int,
    metric: str,
    box: Box | None = None,
    options: EngineOptions = EngineOptions(),
) -> Iterator[str]:
    """Yield a page of search results, which is written to `out`.

    `locations` are those of the queries' files, in the same order, empty for a
    file that must not be read. `box` is the part of each that was searched
    with. Hits that are ``unchecked`` are not read either.
    """
    shown = [
        location
        for result, query in zip(results, locations)
        for location in (query, *("" if hit.state == "unchecked" else hit.location for hit in result.hits))
    ]
    scores = [hit.score for result in results for hit in result.hits]
    scale = Scale(min(scores, default=0.0), max([1.0] if metric == "cosine" else scores, default=0.0))
    facts = [("score", _SCORES[metric]), ("hits", f"at most {k} for each query")]
    facts += [("part", "{2}×{3} pixels of each query image, from {0},{1} on".format(*box))] if box else []
    facts += [("bars", f"from {scale.empty:.6f}, the lowest score, to {scale.full:.6f}")] if scores else []
    with closing(thumbnails_at(shown, options)) as images:
        body = _search_body(results, locations, scale, Cards(images, out))
        yield from framed(f"Similar images in {store.path.name}", body, store, facts)


def groups_page(
    groups: Groups,
    store: FeatureStore,
    *,
    out: Path,
    threshold: float | None,
    check: bool = False,
    options: EngineOptions = EngineOptions(),
) -> Iterator[str]:
    """Yield a page of groups of near-identical images, written to `out`.

    They have a cosine of at least `threshold` with the first of their group, or are copies if it is None.
    The first `MOST_IMAGES` are shown, then the first `MOST_PAIRS` pairs across
    groups. Images in remote storage are read only if `check` is set.
    """
    limited, pairs = list(_limited(groups)), groups.pairs[:MOST_PAIRS]
    members = [member for group in limited for member in group.members]
    locations = [member.location for member in members] + [image.location for pair in pairs for image in pair.images]
    shown = [readable(location, check=check) for location in locations]
    scale = Scale(min((member.similarity for member in members), default=0.0), 1.0)
    facts = [likeness(threshold, " with the first image of the group")]
    facts += _totals(groups)
    facts += [("bars", f"from {scale.empty:.6f}, the lowest similarity, to 1.000000")] if members else []
    with closing(thumbnails_at(shown, options)) as images:
        body = _groups_body(groups, limited, scale, Cards(images, out), check)
        yield from framed(f"Near-identical images in {store.path.name}", body, store, facts)


def likeness(threshold: float | None, what: str = "") -> tuple[str, str]:
    """Say on a page what its images have in common: a cosine (`what` says with which), or their bytes."""
    if threshold is None:
        return "copies", "the same bytes"
    return "near-identical", f"a cosine of at least {threshold:g}{what}"


def _limited(groups: Iterable[Group]) -> Iterator[Group]:
    """Yield the groups with the first `MOST_IMAGES` images, the last one perhaps only in part."""
    left = MOST_IMAGES
    for group in groups:
        if left:
            yield Group(group.members[:left])
            left -= len(group.members[:left])


def _totals(groups: Groups) -> Iterator[tuple[str, str]]:
    yield "groups", f"{len(groups):,}"
    yield "images", f"{sum(len(group.members) for group in groups):,}"
    if reclaimable := sum(group.reclaimable for group in groups):
        yield "reclaimable", bytes_in_words(reclaimable)
    if groups.pairs:
        yield "pairs across groups", f"{len(groups.pairs):,}"


def thumbnails_at(locations: Sequence[str], options: EngineOptions) -> Generator[Thumbnail, None, None]:
    """Yield a thumbnail for each location, a blank one for an empty location."""
    wanted, ahead = tee(locations)
    side = SIDE if len(locations) <= _MOST_SHARP else SMALL
    with closing(thumbnails(filter(None, ahead), options, side=side)) as made:
        for location in wanted:
            yield next(made) if location else _UNREAD


def framed(title: str, body: Iterable[str], store: FeatureStore, facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a page with images of `store`: what it is about, with more `facts`, and its `body`."""
    provenance = store.provenance
    about = [("store", f"{store.path}, {count(len(store), 'image')}"), ("weights", provenance.weights_label), *facts]

    def noted() -> Iterator[str]:
        if provenance.random:
            yield '<p class="note">The weights are random: good for trying things out, not for results.</p>\n'
        yield from body

    return page(title, noted(), facts=about, css=style("gallery.css"), images="data: file: 'self'")


def _search_body(results: Sequence[Result], locations: Sequence[str], scale: Scale, cards: Cards) -> Iterator[str]:
    if len(results) > 1:
        yield _contents(
            "Queries",
            f"{len(results)} queries",
            (f"#query-{i}" for i in _numbers(results)),
            (marked(r.query) for r in results),
        )
    for i, (result, location) in enumerate(zip(results, locations), 1):
        number = f" {i}" if len(results) > 1 else ""
        yield f'<section id="query-{i}" class="result" aria-labelledby="title-{i}">\n<div class="query">\n'
        yield f'<h2 id="title-{i}">Query{number}</h2>\n'
        yield cards.card(f"query{number}", result.query, location)
        yield "</div>\n"
        if result.hits:
            yield f'<ol class="cards" role="list" aria-label="Hits of query{number}">\n'
            for hit in result.hits:
                yield f"<li>{_hit(cards, hit, scale)}</li>\n"
            yield "</ol>\n"
        else:
            yield "<p>No hits.</p>\n"
        yield "</section>\n"


def _contents(label: str, summary: str, links: Iterable[str], names: Iterable[str]) -> str:
    """Mark up the contents of a page, folded; `names` is HTML."""
    items = "".join(f'<li><a href="{link}">{name}</a></li>\n' for link, name in zip(links, names))
    return (
        f'<nav aria-label="{label}">\n<details><summary>{summary}</summary>\n<ol>\n{items}</ol>\n</details>\n</nav>\n'
    )


def _hit(cards: Cards, hit: Hit, scale: Scale) -> str:
    label = f"hit {hit.rank}"
    caption = f'<p class="score"><span class="rank">hit {hit.rank}</span> {labelled("score", hit.score)}</p>\n'
    caption += scale.bar(hit.score) + _state(hit.state)
    if hit.state in _STATES:
        label += f", {hit.state}"
    if hit.damage:
        label += ", damaged"
        caption += f'<p class="mark"><b>damaged:</b> {escape(hit.damage)}</p>\n'
    return cards.card(label, hit.path, "" if hit.state in ("missing", "unchecked") else hit.location, caption)


def _groups_body(groups: Groups, limited: Sequence[Group], scale: Scale, cards: Cards, check: bool) -> Iterator[str]:
    if not groups:
        yield "<p>No near-identical images.</p>\n"
    if sum(len(group.members) for group in groups) > MOST_IMAGES:
        left = len(groups) - len(limited)
        more = f", in {count(len(limited), 'group')}, and none of the other {count(left, 'group')}" if left else ""
        yield f'<p class="note">The page has the first {MOST_IMAGES:,} images{more}: --csv and --json list all.</p>\n'
    if len(limited) > 1:
        names = (
            f"{marked(os.path.basename(group.members[0].path))} ({len(group.members):,})"
            for group in groups[: len(limited)]
        )
        yield _contents("Groups", count(len(limited), "group"), (f"#title-{i}" for i in _numbers(limited)), names)
    yield '<div class="groups">\n' if limited else ""
    for number, (group, part) in enumerate(zip(groups, limited), 1):
        yield f'<section class="group" aria-labelledby="title-{number}">\n'
        freed = f", {bytes_in_words(group.reclaimable)} reclaimable" if group.reclaimable else ""
        yield f'<h2 id="title-{number}">Group {number}: {len(group.members):,} images{freed}</h2>\n'
        yield '<ol class="cards" role="list">\n'
        for i, member in enumerate(part.members, 1):
            label, caption = f"group {number}, image {i}", _membership(member, i, scale)
            location = "" if member.state == "missing" else readable(member.location, check=check)
            yield f"<li>{cards.card(label, member.path, location, caption, size=member.size)}</li>\n"
        yield "</ol>\n</section>\n"
    yield "</div>\n" if limited else ""
    yield from _pairs_body(groups.pairs, len(limited), cards, check)


def _pairs_body(pairs: Sequence[Pair], last: int, cards: Cards, check: bool) -> Iterator[str]:
    if not pairs:
        return
    yield '<div class="groups">\n'
    for number, pair in enumerate(pairs[:MOST_PAIRS], 1):
        yield f'<section class="group" aria-labelledby="pair-{number}">\n'
        yield f'<h2 id="pair-{number}">Near-identical, in different groups: {pair.similarity:.6f}</h2>\n'
        yield '<ol class="cards" role="list">\n'
        for i, image in enumerate(pair.images, 1):
            label, caption = f"pair {number}, image {i}", _pairing(image, last)
            location = readable(image.location, check=check)
            yield f"<li>{cards.card(label, image.path, location, caption, size=image.size)}</li>\n"
        yield "</ol>\n</section>\n"
    yield "</div>\n"
    yield f"<p>{len(pairs):,} pair{'s' if len(pairs) > 1 else ''} across groups"
    yield f", of which {MOST_PAIRS} are shown.</p>\n" if len(pairs) > MOST_PAIRS else ".</p>\n"


def _pairing(image: PairImage, last: int) -> str:
    group = f"group {image.group}" if image.group else "in no group"
    if image.group and image.group <= last:
        group = f'<a href="#title-{image.group}">{group}</a>'
    return f'<p class="score">{group}</p>\n'


def _membership(member: GroupImage, number: int, scale: Scale) -> str:
    if number == 1:
        return f'<p class="score"><b>first</b></p>\n{scale.bar(1.0)}{_state(member.state)}'
    relation = "the same bytes as the first" if member.is_copy else member.relation
    same = f'<p class="same">{relation}</p>\n' if relation else ""
    score = f'<p class="score">{labelled("similarity", member.similarity)}</p>\n'
    return score + scale.bar(member.similarity) + same + _state(member.state)


def labelled(name: str, value: float) -> str:
    """Mark up a score with its name."""
    return f'<span class="label">{name}</span> <b>{value:.6f}</b>'


def _state(state: str) -> str:
    return f'<p class="mark"><b>{state}:</b> {_STATES[state]}</p>\n' if state in _STATES else ""


def _numbers(things: Sequence[object]) -> range:
    return range(1, len(things) + 1)
