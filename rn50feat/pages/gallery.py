"""Show images on a page: queries next to their hits, and groups of near-identical images.

Takes the results of `search` and `duplicates`, and yields the pieces of one HTML
page with thumbnails inside, for `page.save`. They are made as they are needed,
so that the memory for a page does not grow with its length.
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, tee

from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import count
from rn50feat.errors import size as bytes_in_words
from rn50feat.images.decoding import has_image_suffix
from rn50feat.pages.page import escape, page, style
from rn50feat.pages.thumbnails import Thumbnail, thumbnails
from rn50feat.searching.groups import Group, GroupImage, Pair, PairImage
from rn50feat.searching.search import Hit, Result
from rn50feat.sources.presence import file_url, readable
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
MOST_PAIRS = 100  # on a page: the most similar ones
_UNREAD = Thumbnail(b"", "is in remote storage: use --check to show it")


def search_page(
    results: Sequence[Result],
    locations: Sequence[str],
    store: FeatureStore,
    *,
    k: int,
    metric: str,
    options: EngineOptions = EngineOptions(),
) -> Iterator[str]:
    """Yield a page of search results.

    `locations` are those of the queries' files, in the same order, empty for a
    file that must not be read. Hits that are ``unchecked`` are not read either.
    """
    shown = (
        location
        for result, query in zip(results, locations)
        for location in (query, *("" if hit.state == "unchecked" else hit.location for hit in result.hits))
    )
    facts = [("score", _SCORES[metric]), ("hits", f"at most {k} for each query")]
    with closing(_thumbnails(shown, options)) as images:
        body = _search_body(results, locations, metric, images)
        yield from _page(f"Similar images in {store.path.name}", body, store, facts)


def groups_page(
    groups: Iterable[Group],
    store: FeatureStore,
    *,
    threshold: float,
    check: bool = False,
    pairs: Sequence[Pair] = (),
    options: EngineOptions = EngineOptions(),
) -> Iterator[str]:
    """Yield a page of groups of near-identical images, found at a cosine of at least `threshold`.

    The first `MOST_PAIRS` of the `pairs` across groups follow. Images in
    remote storage are read only if `check` is set.
    """
    groups, ahead = tee(groups)
    members = (member.location for group in ahead for member in group.members)
    paired = (image.location for pair in pairs[:MOST_PAIRS] for image in pair.images)
    shown = (readable(location, check=check) for location in chain(members, paired))
    with closing(_thumbnails(shown, options)) as images:
        body = chain(_groups_body(groups, images), _pairs_body(pairs, images))
        facts = [("near-identical", f"a cosine of at least {threshold:g} with the first image of the group")]
        yield from _page(f"Near-identical images in {store.path.name}", body, store, facts)


def _thumbnails(locations: Iterable[str], options: EngineOptions) -> Generator[Thumbnail, None, None]:
    """Yield a thumbnail for each location, a blank one for an empty location."""
    wanted, ahead = tee(locations)
    with closing(thumbnails(filter(None, ahead), options)) as made:
        for location in wanted:
            yield next(made) if location else _UNREAD


def _page(title: str, body: Iterable[str], store: FeatureStore, facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    provenance = store.provenance
    about = [("store", f"{store.path}, {count(len(store), 'image')}"), ("weights", provenance.weights_label), *facts]

    def marked() -> Iterator[str]:
        if provenance.random:
            yield '<p class="note">The weights are random: good for trying things out, not for results.</p>\n'
        yield from body

    return page(title, marked(), facts=about, css=style("gallery.css"))


def _search_body(
    results: Sequence[Result], locations: Sequence[str], metric: str, images: Iterator[Thumbnail]
) -> Iterator[str]:
    if len(results) > 1:
        links = "".join(f'<li><a href="#query-{i}">{_name(r.query)}</a></li>\n' for i, r in enumerate(results, 1))
        yield f'<nav aria-label="Queries">\n<details><summary>{len(results)} queries</summary>\n<ol>\n{links}</ol>\n'
        yield "</details>\n</nav>\n"
    for i, (result, location) in enumerate(zip(results, locations), 1):
        number = f" {i}" if len(results) > 1 else ""
        yield f'<section id="query-{i}" class="result" aria-labelledby="title-{i}">\n<div class="query">\n'
        yield f'<h2 id="title-{i}">Query{number}</h2>\n'
        yield _figure(next(images), f"query{number}", result.query, location, "")
        yield "</div>\n"
        if result.hits:
            largest = max(abs(hit.score) for hit in result.hits)
            yield f'<ol class="cards" role="list" aria-label="Hits of query{number}">\n'
            for hit in result.hits:
                yield f"<li>{_hit(next(images), hit, 1.0 if metric == 'cosine' else largest)}</li>\n"
            yield "</ol>\n"
        else:
            yield "<p>No hits.</p>\n"
        yield "</section>\n"


def _hit(thumbnail: Thumbnail, hit: Hit, full: float) -> str:
    label = f"hit {hit.rank}"
    rank = f'<span class="rank">{_spoken("hit")}{hit.rank}</span>'
    caption = f'<p class="score">{rank} <b>{_spoken("score")}{hit.score:.4f}</b></p>\n'
    caption += _bar(hit.score / full if full else 0.0)
    if hit.state in _STATES:
        label += f", {hit.state}"
        caption += f'<p class="mark"><b>{hit.state}:</b> {_STATES[hit.state]}</p>\n'
    if hit.damage:
        label += ", damaged"
        caption += f'<p class="mark"><b>damaged:</b> {escape(hit.damage)}</p>\n'
    return _figure(thumbnail, label, hit.path, "" if hit.state == "missing" else hit.location, caption)


def _groups_body(groups: Iterable[Group], images: Iterator[Thumbnail]) -> Iterator[str]:
    count = total = 0
    yield '<div class="groups">\n'
    for count, group in enumerate(groups, 1):
        total += len(group.members)
        yield f'<section class="group" aria-labelledby="title-{count}">\n'
        freed = f", {bytes_in_words(group.reclaimable)} reclaimable" if group.reclaimable else ""
        yield f'<h2 id="title-{count}">Group {count}: {len(group.members)} images{freed}</h2>\n'
        yield '<ol class="cards" role="list">\n'
        for i, member in enumerate(group.members, 1):
            label = f"group {count}, image {i}"
            yield f"<li>{_figure(next(images), label, member.path, member.location, _membership(member, i))}</li>\n"
        yield "</ol>\n</section>\n"
    yield "</div>\n"
    groups_found = f"{count:,} group{'s' if count > 1 else ''}, {total:,} images in all."
    yield f"<p>{groups_found if count else 'No near-identical images.'}</p>\n"


def _pairs_body(pairs: Sequence[Pair], images: Iterator[Thumbnail]) -> Iterator[str]:
    if not pairs:
        return
    yield '<div class="groups">\n'
    for number, pair in enumerate(pairs[:MOST_PAIRS], 1):
        yield f'<section class="group" aria-labelledby="pair-{number}">\n'
        yield f'<h2 id="pair-{number}">Near-identical, in different groups: {pair.similarity:.4f}</h2>\n'
        yield '<ol class="cards" role="list">\n'
        for i, image in enumerate(pair.images, 1):
            label = f"pair {number}, image {i}"
            yield f"<li>{_figure(next(images), label, image.path, image.location, _pairing(image))}</li>\n"
        yield "</ol>\n</section>\n"
    yield "</div>\n"
    yield f"<p>{len(pairs):,} pair{'s' if len(pairs) > 1 else ''} across groups"
    yield f", of which {MOST_PAIRS} are shown.</p>\n" if len(pairs) > MOST_PAIRS else ".</p>\n"


def _pairing(image: PairImage) -> str:
    group = f'<a href="#title-{image.group}">group {image.group}</a>' if image.group else "in no group"
    return f'<p class="score">{group} <span class="size">{_length(image.size)}</span></p>\n'


def _length(size: int) -> str:
    return f"{size / 1000:,.0f} kB" if size >= 1000 else count(size, "byte")


def _membership(member: GroupImage, number: int) -> str:
    pixels = f"{member.width}×{member.height}, " if member.width else ""
    size = f'<span class="size">{pixels}{_length(member.size)}</span>'
    mark = f'<p class="mark"><b>{member.state}:</b> {_STATES[member.state]}</p>\n' if member.state in _STATES else ""
    if number == 1:
        return f'<p class="score"><b>largest</b> {size}</p>\n{mark}'
    same = '<p class="same">the same bytes as the first</p>\n' if member.is_copy else ""
    similarity = f"<b>{_spoken('similarity')}{member.similarity:.4f}</b>"
    return f'<p class="score">{similarity} {size}</p>\n{_bar(member.similarity)}{same}{mark}'


def _spoken(word: str) -> str:
    """Mark up a word for screen readers only; others see what is meant."""
    return f'<span class="spoken">{word} </span>'


def _bar(share: float) -> str:
    """Draw a thin bar, filled to a `share` of at most 1; screen readers skip it and read the number next to it."""
    return (
        '<svg class="bar" width="100%" height="3" aria-hidden="true">'
        f'<rect width="{100 * min(max(share, 0.0), 1.0):.2f}%" height="3"/></svg>\n'
    )


def _figure(thumbnail: Thumbnail, label: str, path: str, location: str, caption: str) -> str:
    """Mark up an image with a caption and its path, and a link to its file if a `location` is given."""
    # A browser would run a file with a name such as x.html, even if it is an image too.
    url = file_url(location) if has_image_suffix(location) else ""
    if not thumbnail.jpeg:
        shown = f'<span class="frame blank">The file {escape(thumbnail.reason)}</span>'
    else:
        data = base64.b64encode(thumbnail.jpeg).decode()
        image = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(f"{label}: {path}")}" decoding="async">'
        tag, href = ("a", f' href="{escape(url)}"') if url else ("span", "")
        shown = f'<{tag} class="frame"{href}>{image}</{tag}>'
    return f'<figure>{shown}\n<figcaption>\n{caption}<p class="path">{_name(path)}</p>\n</figcaption>\n</figure>'


def _name(path: str) -> str:
    """Mark up a path: its last part stands out, it wraps at slashes, and is isolated from other text's direction."""
    folder, slash, name = path.rpartition("/")
    above = escape(folder + slash).replace("/", "/<wbr>")
    return f'<bdi dir="ltr"><span class="folder">{above}</span>{escape(name)}</bdi>'
