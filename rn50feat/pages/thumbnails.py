"""Make thumbnails, as safely as `extract` decodes images.

Takes locations of images and yields a small JPEG for each, or the reason why
there is none, in the same order. Any image may be hostile, so the processes of
`engines.pool` decode them: none can crash or hang the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from rn50feat.durable.limits import cores
from rn50feat.engines.contract import EngineOptions, Failure
from rn50feat.engines.pool import DecoderPool, Outcome
from rn50feat.images.provenance import Preprocessing
from rn50feat.sources.reference import Reference

SIDE = 320  # pixels: sharp at 160 CSS pixels on a screen of double density, and 10 to 20 kB
SMALL = 112  # for pages of many images: 2.2 kB
MOST_WORKERS = 8  # a page has few images, and a process takes 0.3 s to start


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG; if empty, the reason."""

    jpeg: bytes
    reason: str = ""


def thumbnails(
    locations: Iterable[str], options: EngineOptions = EngineOptions(), *, side: int = SIDE
) -> Generator[Thumbnail, None, None]:
    """Yield a thumbnail for each location, at most `side` pixels in width and height.

    Memory does not grow with their number.
    Only ``workers`` and ``max_megapixels`` of `options` matter. Close the
    generator to stop its processes early.
    """
    workers = options.workers or min(cores(), MOST_WORKERS)
    max_pixels = options.max_megapixels * 1_000_000
    pool = DecoderPool(
        Preprocessing(crop=side), slots=2 * workers, workers=workers, max_pixels=max_pixels, content="thumbnail"
    )
    waiting = iter(locations)
    free = deque(range(2 * workers))
    decoding: deque[tuple[int, Future[list[Outcome]]]] = deque()
    try:
        while True:
            while free and (location := next(waiting, None)) is not None:
                slot = free.popleft()
                (image,) = pool.decode(slot, [Reference(location, -1, -1)])
                decoding.append((slot, image))
            if not decoding:
                return
            slot, image = decoding.popleft()
            (made,) = image.result()
            jpeg = b"" if isinstance(made, Failure) else pool.crops[slot].tobytes().rstrip(b"\0")
            free.append(slot)
            yield Thumbnail(jpeg, made.reason if isinstance(made, Failure) else "")
    finally:
        pool.close()
