"""best: what is kept does not depend on the order in which rows come."""

from __future__ import annotations

import numpy as np
from vectors import clusters

from rn50feat.searching.best import Best


def test_rows_may_come_in_any_order_and_limits_rise() -> None:
    features = np.tile(clusters(20), (3, 1))
    found = []
    for seed in (0, 1):
        best, limits = Best(features[4], 7, "cosine"), []
        for rows in np.array_split(np.random.default_rng(seed).permutation(60), 9):
            best.add(rows, rows, features[rows])
            limits.append(best.limit)
        assert limits == sorted(limits)
        found.append([part[:7].tolist() for part in best.ranking()])
    assert found[0] == found[1]
    assert found[0][0][:3] == [4, 24, 44]
    assert limits[-1] < found[0][1][-1]
