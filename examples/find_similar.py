"""Find the images in a folder that are most similar to one image.

    python examples/find_similar.py FOLDER QUERY [WEIGHTS]

The first run writes the features to FOLDER/features.h5. Later runs compute only
those of new images.
"""

import sys
from pathlib import Path

import rn50feat


def main(folder: str, query: str, weights: str | None = None) -> None:
    store = Path(folder, "features.h5")
    rn50feat.extract(folder, store, weights=weights)
    (result,) = rn50feat.search(query, store, k=5)
    for hit in result.hits:
        print(f"{hit.score:.4f}  {hit.path!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
