"""Put results into words: for people, for pipes and for programs.

In: search results, a store. Out: text, as an aligned table, tab-separated
lines, CSV or JSON. Names come out whole: bytes that are not UTF-8 as they are
(or as surrogate escapes in JSON), control characters escaped where a line
break would break the form.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rn50feat.bench import Benchmark
    from rn50feat.preview import Preview
    from rn50feat.provenance import Provenance
    from rn50feat.search import Result
    from rn50feat.store import FailureRecord, FeatureStore

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_ESCAPES = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": "\\\\"}


def one_line(name: str) -> str:
    r"""Return `name` with its control characters escaped (``\n``, ``\x1b``) and backslashes doubled."""
    return _CONTROL.sub(lambda match: _ESCAPES.get(match[0], f"\\x{ord(match[0]):02x}"), name)


def table(results: Iterable[Result]) -> str:
    """Return aligned columns, a block for each query."""
    blocks = []
    for result in results:
        lines = [f"{one_line(result.query)}", "rank   score  path"]
        lines += [f"{hit.rank:4}  {hit.score:.4f}  {one_line(hit.path)}" for hit in result.hits]
        blocks.append("\n".join(lines if result.hits else [*lines[:1], "no hits"]))
    return "\n\n".join(blocks) + "\n"


def tab_separated(results: Iterable[Result]) -> str:
    """Return a line for each hit: query, rank, score, path."""
    return "".join(
        f"{one_line(result.query)}\t{hit.rank}\t{hit.score:.6f}\t{one_line(hit.path)}\n"
        for result in results
        for hit in result.hits
    )


def comma_separated(results: Iterable[Result]) -> str:
    """Return CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["query", "rank", "score", "path", "location", "id"])
    for result in results:
        writer.writerows([result.query, hit.rank, hit.score, hit.path, hit.location, hit.id] for hit in result.hits)
    return text.getvalue()


def nul_separated(results: Iterable[Result]) -> str:
    """Return the stored paths alone, each ended by a NUL."""
    return "".join(f"{hit.path}\0" for result in results for hit in result.hits)


def as_json(results: Iterable[Result], store: FeatureStore, metric: str) -> str:
    """Return one object, with the weights that the scores depend on."""
    context = {"store": str(store.path), "weights": store.provenance.weights, "metric": metric}
    return json.dumps({**context, "results": [asdict(result) for result in results]}, indent=2) + "\n"


def describe(store: FeatureStore, runs: int = 5) -> dict[str, Any]:
    """Return what there is to know of a store, ready for JSON; its last `runs` runs, newest first."""
    with store.reading():
        return {
            "store": str(store.path),
            "rows": len(store),
            "dtype": str(store.dtype),
            "bytes": store.path.stat().st_size,
            "id": store.id,
            "provenance": json.loads(store.provenance.to_json()),
            "failures": len(store.failures()),
            "runs": store.runs()[: -runs - 1 : -1],
        }


def description(facts: dict[str, Any], provenance: Provenance) -> str:
    """Return what `describe` found, in plain words."""
    lines = [
        ("store", f"{one_line(facts['store'])} ({size(facts['bytes'])})"),
        ("pictures", f"{facts['rows']} rows of 2048 {facts['dtype']}"),
        *provenance_lines(provenance),
        ("failures", f"{facts['failures']}{' (--failures lists them)' if facts['failures'] else ''}"),
    ]
    lines += [("last runs" if i == 0 else "", run_line(run)) for i, run in enumerate(facts["runs"])]
    return "".join(f"{name:13}  {text}\n" for name, text in lines)


def provenance_lines(provenance: Provenance) -> list[tuple[str, str]]:
    """Return the provenance as (name, words)."""
    picture = provenance.preprocessing
    mark = " - random: for trying things out, not for results" if provenance.random else ""
    return [
        ("network", f"{provenance.network}, layer {provenance.layer}"),
        ("weights", f"{one_line(provenance.weights_label)}{mark}"),
        (
            "picture",
            f"shorter side to {picture.resize} ({picture.interpolation}), central {picture.crop}x{picture.crop}",
        ),
        ("", f"EXIF orientation {picture.exif}, transparency {picture.transparency}, {picture.channels}"),
        ("", f"large JPEGs decoded {'whole' if picture.decoding == 'exact' else 'at a smaller scale'}"),
        ("", f"mean {_numbers(picture.mean)}, std {_numbers(picture.std)}"),
    ]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def run_line(run: dict[str, Any]) -> str:
    """Return a run's record in one line."""
    how = f"{run['device']} {run['precision']}" if run["device"] else "nothing to compute"
    end = counts(run["counts"]) if run["ended"] else f"did not end; by its last commit: {counts(run['counts'])}"
    return f"{run['started'][:16].replace('T', ' ')}  {how}: {end}"


def counts(summary: dict[str, Any]) -> str:
    """Return a summary's counts in one line, without those that are zero."""
    names = ("new", "changed", "reused", "unchanged", "removed", "failed", "failed_before", "vanished", "ignored")
    parts = [f"{summary[name]} {name.replace('_', ' ')}" for name in names if summary.get(name)]
    return ", ".join(parts) or "nothing"


def preview_line(expected: Preview) -> str:
    """Return a preview in one line."""
    found = f"{expected.compute} to compute, {expected.unchanged} unchanged, {expected.failed_before} failed before"
    time = "" if expected.seconds is None else f" in about {duration(expected.seconds)}"
    return f"{found}, {expected.ignored} ignored, {expected.remove} to remove; {size(expected.bytes)}{time}\n"


def duration(seconds: float) -> str:
    """Return a time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def benchmark_lines(result: Benchmark) -> str:
    """Return a benchmark as a table and a sentence."""
    how = f"{result.backend} on {result.device}, {result.precision}"
    lines = [
        ("listing", result.listing, "files/s"),
        ("reading", result.reading, "pictures/s, from the cache if they were there"),
        ("decoding", result.decoding, f"pictures/s on one of {result.cores} cores"),
        ("network", result.network, f"pictures/s alone, {how}"),
        ("together", result.together, f"pictures/s, {result.pictures} pictures over and over"),
    ]
    table = "".join(f"{name:9} {rate:9.1f}  {unit}\n" for name, rate, unit in lines)
    return f"{table}the bottleneck is {result.bottleneck}; what would help: {result.advice}\n"


def failure_lines(failures: Iterable[FailureRecord]) -> str:
    """Return a line for each failure: path, reason, attempts."""
    return "".join(f"{one_line(f.path)}\t{one_line(f.reason)}\t{f.attempts}\n" for f in failures)


def size(length: float) -> str:
    """Return a number of bytes in words."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while length >= 1000 and len(units) > 1:
        length /= 1000
        del units[0]
    return f"{length:.3g} {units[0]}"
