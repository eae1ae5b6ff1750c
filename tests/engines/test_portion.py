"""A portion of references: what is left of it, and how the picture is found that kills its workers."""

from __future__ import annotations

import numpy as np

from rn50feat.engines.contract import Batch, Failure
from rn50feat.engines.portion import SUSPECTS, Portion
from rn50feat.sources.reference import Reference

REFERENCES = [Reference(f"/{i}.png", i, 0) for i in range(100)]


def test_what_is_back_is_struck_out() -> None:
    portion = Portion(REFERENCES)
    broken = Failure(REFERENCES[2], "is broken")
    portion.take(Batch((REFERENCES[0], REFERENCES[1], REFERENCES[3]), np.zeros((3, 2048), np.float32), (broken,)))
    assert portion.references == REFERENCES[4:]
    assert portion.size == 100


def test_the_picture_that_kills_its_workers_is_found_after_four_of_them() -> None:
    deaths, tried, done, failures = 0, [Portion(REFERENCES)], [], []
    while tried:
        portion = tried.pop(0)
        if REFERENCES[41] in portion.references:
            deaths += 1
            again, failed = portion.after_death()
            assert all(len(part.references) <= SUSPECTS for part in again)
            tried += again
            failures += failed
        else:
            done += portion.references
    assert deaths == 4
    assert failures == [Failure(REFERENCES[41], "ended its Ray worker 2 times")]
    assert sorted(done, key=REFERENCES.index) == REFERENCES[:41] + REFERENCES[42:]


def test_one_death_alone_is_no_proof() -> None:
    (again,), failures = Portion(REFERENCES[:1]).after_death()
    assert (again.references, failures) == (REFERENCES[:1], ())
