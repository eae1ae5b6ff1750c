"""Count right relations of edited images, and related pairs of different ones.

``python tests/benchmarks/relations.py COUNT [FOLDER]`` takes COUNT images from
a folder, or draws them: each edited in all ways, then in pairs.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from itertools import combinations, islice
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from edits import EDITS, view
from scenes import scene

from rn50feat.searching.alignment import compare

count = int(sys.argv[1])
if sys.argv[2:]:
    images = [Image.open(path).convert("RGB") for path in sorted(Path(sys.argv[2]).iterdir())[:count]]
    for image in images:
        image.thumbnail((1000, 1000))
else:
    images = [scene(seed, *[(320, 240), (480, 360), (240, 180), (640, 480)][seed % 4]) for seed in range(count)]
begun, wrong = time.process_time(), Counter[str]()
for seed, image in enumerate(images):
    rng, original = random.Random(seed), view(image)
    for expected, edit in EDITS:
        if (found := compare(original, view(edit(image, rng))).relation) != expected:
            wrong[f"{expected}: {found}"] += 1
total = len(images) * len(EDITS)
print(
    f"{total - wrong.total()} of {total} relations right; {(time.process_time() - begun) / total:.2f} s of a core each"
)
print(*(f"{number} {what}" for what, number in wrong.items()), sep="\n")
views = [view(image) for image in images]
pairs = list(islice(combinations(views, 2), 10 * count))
related = Counter(compare(*pair).relation for pair in pairs)
print(f"{related[None]} of {len(pairs)} pairs of different images are not related")
