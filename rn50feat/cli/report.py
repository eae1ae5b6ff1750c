"""Format results for people, pipes and programs.

Takes search results, a store and its index, and returns aligned tables,
tab-separated lines, CSV, or facts for JSON. Names stay whole: bytes that are
not UTF-8 are printed as they are (in JSON, as surrogate escapes), and
invisible characters are escaped where a line break would break the format.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn50feat.errors import count, size
from rn50feat.escape import one_line

if TYPE_CHECKING:
    from rn50feat.extraction.bench import Benchmark
    from rn50feat.extraction.preview import Preview
    from rn50feat.images.provenance import Preprocessing, Provenance
    from rn50feat.images.quantization import Quantization
    from rn50feat.searching.index_plan import Plan
    from rn50feat.searching.index_summary import IndexSummary
    from rn50feat.searching.search import Hit, Result
    from rn50feat.sources.exclusion import Excluded
    from rn50feat.store.damage_notes import DamageRecord
    from rn50feat.store.reader import FailureRecord, FeatureStore

NOTHING = "nothing done"


def table(results: Iterable[Result]) -> str:
    """Format results as aligned columns, one block per query."""
    blocks = []
    for result in results:
        lines = [f"{one_line(result.query)}", "rank   score  path"]
        lines += [f"{hit.rank:4}  {hit.score:.4f}  {one_line(hit.path)}{_mark(hit)}" for hit in result.hits]
        blocks.append("\n".join(lines if result.hits else [*lines[:1], "no hits"]))
    return "\n\n".join(blocks) + "\n"


def _mark(hit: Hit) -> str:
    return f"  ({marks})" if (marks := _marks(hit)) else ""


def _marks(hit: Hit) -> str:
    marks = [hit.state] if hit.state in ("missing", "changed") else []
    return ", ".join([*marks, "damaged"] if hit.damage else marks)


def tab_separated(results: Iterable[Result]) -> str:
    """Format a line per hit: query, rank, score, path, and missing, changed or damaged if it is."""
    return "".join(
        f"{one_line(result.query)}\t{hit.rank}\t{hit.score:.6f}\t{one_line(hit.path)}"
        f"{chr(9) + marks if (marks := _marks(hit)) else ''}\n"
        for result in results
        for hit in result.hits
    )


def comma_separated(results: Iterable[Result]) -> str:
    """Format results as CSV with a header."""
    names = ["query", "rank", "score", "path", "location", "id", "state", "damage"]
    return csv_lines(names, ([result.query, *asdict(hit).values()] for result in results for hit in result.hits))


def csv_lines(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Format a header with `names`, and `rows`, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def nul_separated(results: Iterable[Result]) -> str:
    """Format the stored paths alone, each ended by a NUL."""
    return "".join(f"{hit.path}\0" for result in results for hit in result.hits)


def result_facts(results: Iterable[Result], store: FeatureStore, metric: str) -> dict[str, Any]:
    """Return the results, ready for JSON, with the weights that the scores depend on."""
    context = {"weights": store.provenance.weights, "metric": metric}
    return {**context, "results": [asdict(result) for result in results]}


def _index_words(index: dict[str, Any] | None) -> str:
    if index is None:
        return "none: every search scans all rows"
    if "error" in index:
        return one_line(index["error"])
    newer = count(index["behind"], "newer one is", "newer ones are")
    behind = f", {newer} not in it" if index["behind"] else ""
    return f"{index['factory']} for {index['metric']} ({size(index['size'])}), {count(index['rows'], 'row')}{behind}"


def _cache_words(cache: dict[str, Any]) -> str:
    if cache["folder"] is None:
        return "none: compiled networks are kept in the home folder, and this user has none"
    kept = count(cache["networks"], "compiled network")
    return f"{kept} ({size(cache['bytes'])}) in {one_line(cache['folder'])}"


def description(facts: dict[str, Any], store: FeatureStore, width: int | None) -> str:
    """Put into plain words what `describe` found, wrapped at `width` if given."""
    lines = [
        ("store", f"{one_line(str(store.path))} ({size(facts['bytes'])})"),
        ("images", f"{count(facts['rows'], 'row')} of 2048 {facts['dtype']}"),
        *provenance_lines(store.provenance),
        ("index", _index_words(facts["index"])),
        ("cache", _cache_words(facts["cache"])),
        ("failures", f"{facts['failures']}{' (--failures lists them)' if facts['failures'] else ''}"),
    ]
    if facts["damaged"]:
        lines.append(("damaged", f"{facts['damaged']} of the rows come from damaged images (--failures lists them)"))
    lines += [("last runs" if i == 0 else "", run_line(run)) for i, run in enumerate(facts["runs"])]
    return named_lines(lines, width)


def named_lines(lines: Iterable[tuple[str, str]], width: int | None) -> str:
    """Format a line per (name, words), wrapped between words at `width` if given."""
    if width is None:
        return "".join(f"{name:13}  {words}\n" for name, words in lines)
    wrap = partial(
        textwrap.fill, width=width, subsequent_indent=" " * 15, break_long_words=False, break_on_hyphens=False
    )
    return "".join(wrap(words, initial_indent=f"{name:13}  ") + "\n" for name, words in lines)


def provenance_lines(provenance: Provenance) -> list[tuple[str, str]]:
    """Put the provenance into words, as (name, words)."""
    if provenance.unstated:
        return [("made by", f"{one_line(provenance.network)}, according to the import; nothing else is known")]
    image = provenance.preprocessing
    fast = ", by TensorFlow's fast DCT" if image.decoding == "fast DCT" else ""
    mark = " - random: for trying things out, not for results" if provenance.random else ""
    return [
        ("network", f"{provenance.network}, layer {provenance.layer}"),
        ("weights", f"{one_line(provenance.weights_label)}{mark}"),
        *([("", one_line(provenance.weights_layout))] if provenance.weights_layout else []),
        *_quantization_lines(provenance.quantization),
        ("preprocessing", f"{image.name}: {_resized(image)}"),
        ("", f"EXIF orientation {image.exif}, transparency {image.transparency}, {image.channels}"),
        ("", f"colour profiles {image.profile}, {_range(image.value_range)}"),
        ("", f"large JPEGs decoded at {'a reduced' if image.decoding == 'scaled' else 'full'} scale{fast}"),
        ("", f"mean {_numbers(image.mean)}, std {_numbers(image.std)}, of values up to {image.white:g}"),
    ]


def _quantization_lines(quantization: Quantization | None) -> list[tuple[str, str]]:
    if quantization is None:
        return []
    measured = f"{quantization.label}, measured on {quantization.calibrated} images: {quantization.calibration}"
    return [("quantization", one_line(measured)), ("", quantization.agreement)]


def _range(rule: str) -> str:
    limits = {"type": "the limits of their type", "own": "their own minimum and maximum"}
    return f"images of more than 8 bits scaled from {limits.get(rule, rule.replace(':', ' to '))}"


def _resized(image: Preprocessing) -> str:
    square = f"{image.crop}x{image.crop}"
    if image.name == "keras":
        return f"squashed to {square} ({image.interpolation})"
    return f"shorter side to {image.resize} ({image.interpolation}), central {square}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def run_line(run: dict[str, Any]) -> str:
    """Put a run's record into one line."""
    how = f"{run['device']} {run['precision']}" if run["device"] else "nothing to compute"
    done = counts(run["counts"])
    if run.get("command", "extract") != "extract":
        how = run["command"]
    elif not run["device"] and done == NOTHING and run["ended"]:
        return f"{run['started'][:16].replace('T', ' ')}  {done}"
    end = done if run["ended"] else f"did not end; by its last commit: {done}"
    return f"{run['started'][:16].replace('T', ' ')}  {how}: {end}"


def counts(summary: dict[str, Any]) -> str:
    """Put a summary's counts into one line, without those that are zero."""
    names = (
        "new",
        "changed",
        "moved",
        "reused",
        "recomputed",
        "unchanged",
        "removed",
        "damaged",
        "failed",
        "failed_before",
        "vanished",
        "ignored",
        "excluded",
    )
    summary = {**summary, "reused": summary.get("reused", 0) - summary.get("moved", 0)}  # each image in one place
    parts = [f"{summary[name]} {name.replace('_', ' ')}" for name in names if summary.get(name)]
    if summary.get("appledouble"):
        parts = [f"{part} ({summary['appledouble']} AppleDouble)" if "ignored" in part else part for part in parts]
    return ", ".join(parts) or NOTHING


def linked_line(links: Sequence[str]) -> str:
    """List in one line the linked folders that are outside the sources."""
    more = f" and {len(links) - 3} more" if len(links) > 3 else ""
    return f"followed links out of the sources: {', '.join(map(one_line, links[:3]))}{more}"


def preview_line(expected: Preview) -> str:
    """Put a preview into one line."""
    most = "at most " if expected.compute else ""  # copies need no computing, but are recognized only by reading them
    found = f"{most}{expected.compute} to compute, {expected.unchanged} unchanged"
    excluded = f", {expected.excluded} excluded" if expected.excluded else ""
    missing = f", {expected.missing} listed but not there" if expected.missing else ""
    others = f"{expected.failed_before} failed before, {expected.ignored} ignored{excluded}{missing}"
    known = expected.seconds is not None or not expected.compute
    time = f"in about {duration(expected.seconds or 0)}" if known else "time unknown before a first run"
    first = f"; the run first downloads the weights {expected.download}" if expected.download else ""
    moved = f" ({expected.moved} of them may only have moved)" if expected.moved else ""
    return f"{found}, {others}, {expected.remove} to remove{moved}; about {size(expected.bytes)}, {time}{first}\n"


def duration(seconds: float) -> str:
    """Put a time into words: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def benchmark_lines(result: Benchmark) -> str:
    """Format a benchmark as a table and a sentence."""
    how = f"{result.backend} on {result.device}, {result.precision}"
    lines = [
        ("listing", result.listing, "files/s"),
        ("reading", result.reading, "images/s, from the disk cache if they were in it"),
        ("decoding", result.decoding, f"images/s on one of {count(result.cores, 'core')}"),
        ("network", result.network, f"images/s alone, {how}"),
        ("together", result.together, f"images/s, {count(result.pictures, 'image')} over and over"),
    ]
    table = "".join(f"{name:9} {rate:9.1f}  {unit}\n" for name, rate, unit in lines)
    if result.cost is not None:
        table += f"{'spent':9} {_milliseconds(result.cost.spent)}\n"
        table += f"{'least':9} {_milliseconds(result.cost.least)}: {result.cost.reached:.2f} of what is spent\n"
    if result.left_out:
        table += f"{'left out':9} {result.left_out:9}  images that cannot be read or decoded\n"
    return f"{table}the bottleneck is {result.bottleneck}; what would help: {result.advice}\n"


def _milliseconds(stages: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.2f}" for name, value in stages.items())
    return f"{sum(stages.values()):9.2f}  ms of a core per image: {parts}"


def plan_line(plan: Plan) -> str:
    """Say in one line which index will be built, why, and what it takes."""
    takes = f"about {size(plan.size)}, at most {size(plan.memory)} of memory"
    return f"building {plan.factory} ({plan.reason}), {takes}"


def index_line(done: IndexSummary) -> str:
    """Say in one line what was done to an index, and its state."""
    facts = done.facts
    changes = [f"{number} {name}" for number, name in ((done.added, "added"), (done.removed, "removed")) if number]
    words = [count(facts.rows, "row"), *(() if done.built else changes)]
    if done.built or done.tuned:
        words += [f"recall@10 {facts.recall:.3f}" if facts.recall is not None else "too few rows to measure recall"]
        words += [f"scans {count(facts.nprobe, 'list')}"] if facts.nprobe else []
    elif not changes:
        words += ["nothing to do"]
    if done.behind:
        words[1:] = [f"{count(done.behind, 'newer one')} left for later: too few to write {size(facts.size)} again"]
    return ", ".join(words)


def index_facts(name: Path, done: IndexSummary) -> dict[str, Any]:
    """Describe what was done to the index in the file `name`, ready for JSON."""
    counts = {"built": done.built, "added": done.added, "removed": done.removed, "rebuild_pays": done.rebuild_pays}
    return {"file": str(name), **counts, "behind": done.behind, "advice": done.advice, **done.facts.as_dict()}


def failure_lines(failures: Iterable[FailureRecord]) -> str:
    """Format a line per failure: path, reason, attempts."""
    return "".join(f"{one_line(f.path)}\t{one_line(f.reason)}\t{f.attempts}\n" for f in failures)


def excluded_line(excluded: Excluded) -> str:
    """Format a line for an excluded folder or file: its location, and the pattern."""
    return f"{one_line(excluded.location)}\t{one_line(excluded.pattern)}\n"


def damage_lines(damaged: Iterable[DamageRecord]) -> str:
    """Format a line per damaged image: path, what is wrong, and 0 attempts, since it has a row."""
    return "".join(f"{one_line(d.path)}\tis damaged, but has a row: {one_line(d.reason)}\t0\n" for d in damaged)
