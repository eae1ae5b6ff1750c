"""Show which images of one store are in another, side by side.

Takes a `Comparison`, and yields the pieces of one HTML page like `gallery`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import count
from rn50feat.pages.cards import Cards
from rn50feat.pages.gallery import Scale, framed, labelled, likeness, thumbnails_at
from rn50feat.searching.comparison import Comparison, Match
from rn50feat.sources.presence import readable
from rn50feat.store.reader import FeatureStore

MOST = 500  # images of the second store on a page, which then has 4.4 MB


def comparison_page(
    found: Comparison,
    first: FeatureStore,
    second: FeatureStore,
    *,
    out: Path,
    threshold: float | None,
    check: bool = False,
    options: EngineOptions = EngineOptions(),
) -> Iterator[str]:
    """Yield a page that shows the images of `second` found in `first` next to those there, written to `out`.

    The `MOST` most similar ones are shown. `threshold` is the cosine from which images are near, None for
    copies alone. Images in remote storage are read only if `check` is set.
    """
    shown = found.found[:MOST]
    locations = [image.location for match in shown for image in (match.image, match.original)]
    scale = Scale(min((match.similarity for match in shown), default=0.0), 1.0)
    facts = [
        ("compared with", f"{first.path}, {count(len(first), 'image')}"),
        likeness(threshold),
        ("found", f"{len(found.found):,}, of which {count(found.copies, 'is a copy', 'are copies')}"),
        ("new", f"{len(found.new):,}"),
    ]
    facts += [("not compared", f"{len(found.uncompared):,}")] if found.uncompared else []
    facts += [("bars", f"from {scale.empty:.6f}, the lowest similarity, to 1.000000")] if shown else []
    with closing(thumbnails_at([readable(location, check=check) for location in locations], options)) as images:
        body = _body(shown, len(found.found), scale, Cards(images, out), check)
        yield from framed(f"Images of {second.path.name} in {first.path.name}", body, second, facts)


def _body(shown: Sequence[Match], total: int, scale: Scale, cards: Cards, check: bool) -> Iterator[str]:
    if not shown:
        yield "<p>None.</p>\n"
        return
    if total > len(shown):
        yield f'<p class="note">The page has the first {len(shown):,} of {total:,}: --csv and --json list all.</p>\n'
    yield '<div class="groups">\n'
    for number, match in enumerate(shown, 1):
        yield f'<section class="group" aria-labelledby="title-{number}">\n'
        yield f'<h2 id="title-{number}">{number}: {match.label}</h2>\n'
        yield '<ol class="cards" role="list">\n'
        score = f'<p class="score">{labelled("similarity", match.similarity)}</p>\n{scale.bar(match.similarity)}'
        for image, label, caption in ((match.image, "image", score), (match.original, "in the first store", "")):
            location = readable(image.location, check=check)
            yield f"<li>{cards.card(f'{label} {number}', image.path, location, caption, size=image.size)}</li>\n"
        yield "</ol>\n</section>\n"
    yield "</div>\n"
