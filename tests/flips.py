"""Flip random bytes of a store, and see whether that is noticed, and repaired.

    python tests/flips.py [--trials 1000] [--seed 0]

Half of the trials flip a byte of any kind, the other half one that is not zero: most zeros are space that nothing uses.
A trial is silent, and the program wrong, where `verify` finds no fault and something differs from the sound store, or
where anything differs after the repair that `verify` advises.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from fake import FakeStart
from PIL import Image

from rn50feat import FeatureStore, duplicates, export, extract, verify
from rn50feat.errors import RN50FeatError
from rn50feat.searching.search import search_stored
from rn50feat.store import damage_notes
from rn50feat.store.compact import compact

COUNT = 40


class Bench:
    """A store of `COUNT` images, a damaged and a broken one, whose bytes can be flipped."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.images = folder, folder / "out.h5", folder / "images"
        self.images.mkdir()
        rng = np.random.default_rng(0)
        for i in range(COUNT):
            pixels = rng.integers(0, 255, 3, dtype=np.uint8) * np.ones((9, 9, 1), np.uint8)
            Image.fromarray(pixels).save(self.images / f"{i}.png")
        Image.fromarray(pixels).save(self.images / "damaged.jpg")
        whole = (self.images / "damaged.jpg").read_bytes()
        (self.images / "damaged.jpg").write_bytes(whole[:-2])
        (self.images / "bad.png").write_text("text")
        for _ in range(2):  # two runs have two records
            self.extract()
            (self.images / "0.png").touch()
        self.extract()
        self.sound = self.path.read_bytes()
        self.expected, self.rows = self.shown(), self.contents()

    def extract(self) -> None:
        extract(self.images, self.path, weights="random", start=FakeStart(), heal=True)

    def contents(self) -> dict[str, tuple[object, ...]]:
        """Return what each row holds besides its id, by path."""
        store = FeatureStore(self.path)
        names = ("size", "mtime_ns", "digest")
        columns = [store.column(name).tolist() for name in names]
        features = store.features(slice(None)).tobytes()
        width = len(features) // max(1, len(store))
        parts = [features[i : i + width] for i in range(0, len(features), width)]
        return dict(zip(store.paths(), zip(parts, *columns)))

    def shown(self) -> dict[str, object]:
        """Return what commands print; the error of one that refuses is None."""
        out = self.folder / "out.npy"
        return {name: _tried(act) for name, act in self.commands(out).items()}

    def commands(self, out: Path) -> dict[str, Callable[[], object]]:
        store = self.path
        return {
            "search": lambda: [
                (hit.id, hit.path, round(hit.score, 6))
                for result in search_stored(["images/3.png", "images/30.png"], store, k=10)
                for hit in result.hits
            ],
            "duplicates": lambda: [asdict(group) for group in duplicates(store, threshold=0.999)],
            "export": lambda: (export(store, out, overwrite=True), out.read_bytes(), _paths(out)),
            "failures": lambda: [asdict(one) for one in FeatureStore(store).failures()],
            "damage": lambda: [asdict(one) for one in damage_notes.damaged(FeatureStore(store))],
            "runs": lambda: FeatureStore(store).runs(),
            "history": lambda: FeatureStore(store).history(),
            "provenance": lambda: (FeatureStore(store).provenance.to_json(), FeatureStore(store).id),
        }

    def trial(self, at: int, bit: int) -> tuple[str, str]:
        """Flip a bit; return how that is noticed, and how it is repaired."""
        for stale in (*self.folder.glob("out.h5*"), *self.folder.glob("out.npy*"), *self.folder.glob("salvaged*")):
            stale.unlink()
        data = bytearray(self.sound)
        data[at] ^= 1 << bit
        if any(_is_endless(data, heap.start()) for heap in re.finditer(b"GCOL\1\0\0\0", self.sound)):
            return "HDF5 reads without end", ""
        self.path.write_bytes(data)
        try:
            findings = verify(self.path).findings
        except RN50FeatError:
            findings = ["refused"]
        shown = self.shown()
        wrong = [name for name, value in shown.items() if value is not None and value != self.expected[name]]
        if not findings:
            return ("SILENT: " + ", ".join(wrong), "") if wrong or None in shown.values() else ("harmless", "")
        noticed = _kind(findings) + (f", {', '.join(wrong)} otherwise" if wrong else "")
        return noticed, self.repaired(findings)

    def repaired(self, findings: list[str]) -> str:
        """Repair the store as is advised; return how."""
        how = "extract --heal"
        try:
            self.extract()
        except RN50FeatError:
            how = "compact --to, then extract"
            try:
                compact(self.path, self.folder / "salvaged.h5")
                (self.folder / "salvaged.h5").rename(self.path)
            except RN50FeatError:
                how = "extract anew"
                self.path.unlink()
            self.extract()
        if (left := verify(self.path).findings) or self.contents() != self.rows:
            return f"WRONG after {how}: {left}"
        now = self.shown()
        return ", not ".join([how, *(name for name in ("failures", "damage") if now[name] != self.expected[name])])


def _is_endless(data: bytearray, start: int) -> bool:
    """Check whether HDF5 (2.0) never gets to the end of a heap: it steps over free space of no bytes."""
    size = int.from_bytes(data[start + 8 : start + 16], "little")
    at, end = start + 16, start + size
    while at + 16 <= end and end <= len(data):
        index, length = int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 8 : at + 16], "little")
        step = 16 + -(-length // 8) * 8 if index else length
        if not step:
            return True
        at += step
    return False


def _tried(act: Callable[[], object]) -> object:
    try:
        return act()
    except RN50FeatError:
        return None


def _paths(out: Path) -> bytes:
    return out.with_suffix(".paths.txt").read_bytes()


def _kind(findings: list[str]) -> str:
    text = " ".join(findings)
    if "refused" in text or "cannot be read" in text or "is missing" in text:
        return "refused"
    if "what it holds in" in text:
        return "checksum of a table"
    return "checksum of a row" if "differs from its checksum" in text else f"other: {text[:70]}"


def run(folder: Path, trials: int, seed: int = 0) -> Counter[tuple[str, str]]:
    """Make `trials`; return how often each outcome came."""
    bench, rng, outcomes = Bench(folder), random.Random(seed), Counter[tuple[str, str]]()
    used = [at for at, value in enumerate(bench.sound) if value]
    for trial in range(trials):
        at = rng.choice(used) if trial % 2 else rng.randrange(len(bench.sound))
        bit = rng.randrange(8)
        try:
            outcome = bench.trial(at, bit)
        except Exception as bug:
            outcome = f"BUG {type(bug).__name__}: {bug}"[:200], f"at {at}, bit {bit}"
        outcomes[outcome] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for (noticed, repaired), count in run(Path(name), arguments.trials, arguments.seed).most_common():
            print(f"{count:5}  {noticed:60} {repaired}")


if __name__ == "__main__":
    main()
