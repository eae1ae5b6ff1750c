"""Find the pictures of a folder that are most similar to one picture.

    python examples/find_similar.py FOLDER QUERY [WEIGHTS]

The first run computes the features into FOLDER/features.h5; later runs only
those of new pictures.
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
