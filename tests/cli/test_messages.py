"""What people read: numbers with their nouns, what is missing and what makes no sense, lines that fit a terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake import FakeStart

import rn50feat as package
from rn50feat import FeatureStore
from rn50feat.cli import report, terminal
from rn50feat.cli.description import describe
from rn50feat.cli.main import main
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import DeviceError, IndexingError, QueryError, WeightsError
from rn50feat.searching import index_plan
from rn50feat.searching.search import search_stored
from rn50feat.store.summary import RunRecord, Summary


@pytest.fixture
def desk(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a store of five images."""
    monkeypatch.chdir(store.path.parent)
    return store.path.parent


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner(env=variables).invoke(main, list(arguments))


def test_one_thing_is_no_plural(desk: Path, start: FakeStart) -> None:
    (desk / "one").mkdir()
    (desk / "one/red.png").write_bytes((desk / "pictures/red.png").read_bytes())
    package.extract("one", "one.h5", weights="random", start=start)
    assert "one.h5: 1 row, no faults found" in run("verify", "one.h5").stderr
    assert "1 file hashed" in run("verify", "one.h5", "--sources").stderr
    assert "1 row of 2048" in run("info", "one.h5").stdout
    assert "one.npy: 1 row of 2048" in run("export", "one.h5", "one.npy").stderr
    assert ": 1 row, " in run("index", "one.h5").stderr
    assert "1 row\n" in run("info", "one.h5").stdout
    (desk / "one/copy.png").write_bytes((desk / "one/red.png").read_bytes())
    package.extract("one", "one.h5", start=start)
    assert "1 group, 1 more image, 1 of them a copy; " in run("duplicates", "one.h5").stderr
    assert ", 1 newer one is not in it" in run("info", "one.h5").stdout
    assert run("duplicates", "one.h5", "--html", "one.html").exit_code == 0
    assert "0 groups, 0 more images\n" in run("duplicates", "--exact", "out.h5").stderr


def test_a_run_in_which_nothing_was_done_says_so_once(start: FakeStart) -> None:
    done = RunRecord("extract").as_dict(Summary(), ended=True)
    assert re.fullmatch(r"\S+ \S+  nothing done", report.run_line(done))
    assert report.run_line({**done, "command": "import"}).endswith("import: nothing done")
    unchanged = RunRecord("extract").as_dict(Summary(unchanged=2), ended=True)
    assert report.run_line(unchanged).endswith("nothing to compute: 2 unchanged")


def test_small_limits_are_named_as_they_are() -> None:
    with pytest.raises(IndexingError, match="takes about 200 MB of memory, but --max-ram allows 1 kB"):
        index_plan.choose(2, max_ram=1000)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("merge out.h5", 2, "Missing argument 'STORE...': name the stores to merge"),
        ("import rows.npy", 2, "Missing argument 'OUT.h5': name the store"),
        ("convert weights.pth", 2, "Missing argument 'OUT.safetensors': name the file"),
        ("export out.h5", 1, "out.h5 has no known suffix: name a file that ends in"),
        ("extract pictures", 2, "Missing argument 'OUT.h5': name the store to write, after the sources"),
        ("extract out.h5 pictures", 2, "pictures is not the name of a store: name the store last"),
        ("extract pictures out.h5 --time-budget five", 2, "use a form like 90s, 30m or 2h. See"),
        ("search --stored pictures/red.png -k ten", 2, "'ten' is not a valid integer."),
        ("relocate pictures out.h5", 2, "Missing argument 'NEW': name the folder"),
        ("relocate pictures pictures", 1, "pictures and pictures are the same place"),
        ("extract out.h5", 2, "Missing argument 'SOURCE...': name folders or images"),
        ("extract pictures out.h5 --device gpu", 1, "there is no device gpu: use auto, cpu, cuda or cuda:N"),
        ("extract pictures out.h5 --device cpu --precision fp16", 1, "precision fp16 needs a CUDA device"),
        ("extract pictures out.h5 --backend openvino --device cuda", 1, "OpenVINO computes on the CPU"),
        ("extract pictures out.h5 --prune --prune-limit nan", 2, "nan is not a number"),
        ("extract pictures out.h5 --max-failures 101%", 2, "101% is too large: give at most 100%"),
        ("extract pictures out.h5 --commit-every 5s,6s", 2, "sets one limit twice"),
        ("extract pictures out.h5 --engine ray --ray-address head", 1, "head is not the address of a Ray cluster"),
        ("verify --device gpu", 1, "there is no device gpu"),
        ("verify --weights none.pth", 2, "--weights requires --recompute"),
        ("search --stored pictures/red.png --device gpu", 1, "there is no device gpu"),
        ("search --stored pictures/red.png --weights none.pth", 2, "--weights requires a QUERY"),
        ("search --stored pictures/red.png --min-score 2", 1, "--min-score 2 is more than any cosine"),
        ("search pictures/red.png --min-score 2", 1, "--min-score 2 is more than any cosine"),
        ("search --stored pictures/red.png --metric ip --min-score inf", 1, "--min-score inf is not a finite number"),
        ("search --stored red.png", 1, "has no image red.png: did you mean pictures/red.png?"),
        ("search --stored pictures/whit.png", 1, "did you mean pictures/white.png?"),
        ("search --stored nothing", 1, "use a path as rn50feat search -0 shows it"),
        ("duplicates --exact --threshold 0.9", 2, "--exact cannot be combined with --threshold"),
        ("duplicates --exact --scan", 2, "--exact cannot be combined with --scan"),
        ("duplicates --threshold nan", 2, "nan is not a number"),
        ("index --target-recall nan", 2, "nan is not a number"),
        ("export out.h5 f.csv -0", 1, "--null requires a .npy file"),
        ("export --to qdrant f2.npy", 1, "f2.npy is named like a file: leave out --to"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_helps(desk: Path, arguments: str, code: int, message: str) -> None:
    before = (desk / "out.h5").read_bytes()
    done = run(*arguments.split())
    assert (done.exit_code, done.stdout) == (code, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert (desk / "out.h5").read_bytes() == before


def test_variables_for_other_commands_are_no_mistakes(desk: Path) -> None:
    settings = {"RN50FEAT_WEIGHTS": "random", "RN50FEAT_THRESHOLD": "0.9", "RN50FEAT_SCAN": "1"}
    for arguments in ("verify", "search --stored pictures/red.png", "duplicates --exact"):
        assert run(*arguments.split(), **settings).exit_code == 0


def test_a_variable_with_a_wrong_value_is_named(desk: Path) -> None:
    done = run("search", "--stored", "pictures/red.png", RN50FEAT_BATCH_SIZE="big")
    assert done.stderr.startswith("Error: Invalid value for RN50FEAT_BATCH_SIZE: 'big' is not a valid integer. See ")


def test_options_of_an_engine_are_checked_by_the_library_too() -> None:
    with pytest.raises(DeviceError, match="no device gpu"):
        EngineOptions(device="gpu")
    assert EngineOptions(device="cuda:1").device == "cuda:1"
    with pytest.raises(QueryError, match="more than any cosine"):
        search_stored(["a"], "none.h5", min_score=1.5)


def test_a_location_is_one_to_search_by(desk: Path) -> None:
    (hit,) = search_stored(["pictures/red.png"], "out.h5", k=1)[0].hits
    (again,) = search_stored([hit.location], "out.h5", k=1)[0].hits
    assert again == hit
    done = run("search", "--stored", hit.location, "-k", "1", "--html", "hits.html")
    assert done.stdout == f"{hit.location}\t1\t1.000000\tpictures/red.png\n"
    done = run("search", "--stored", "pictures/red.png", "--exclude-self", "--min-score", "1")
    assert done.stderr.splitlines()[1:] == ["pictures/red.png: no hits"]


def test_an_import_in_words_is_told_what_helps_with_each_command(desk: Path, start: FakeStart) -> None:
    np.save("rows.npy", np.eye(1, 2048, dtype=np.float32))
    (desk / "rows.paths.txt").write_text("pictures/red.png")
    package.import_features("rows.npy", "words.h5", made_by="another program")
    with pytest.raises(WeightsError, match="made by another program, .*: leave --recompute out"):
        package.verify("words.h5", recompute=1, start=start)
    with pytest.raises(WeightsError, match="search with --stored"):
        package.search("pictures/red.png", "words.h5", start=start)
    done = run("import", "rows.npy", "words.h5", "--weights", "random")
    assert "words.h5 holds features made by another program, and no others: import into another store" in done.stderr
    assert "--stored" not in done.stderr


def test_help_is_whole_at_80_columns() -> None:
    for name in (None, *main.commands):
        arguments = [name, "--help"] if name else ["--help"]
        text = CliRunner().invoke(main, arguments, terminal_width=80).output
        assert max(map(len, text.splitlines())) <= 80
        assert not re.search(r"--[a-z-]*-\n", text), text
    for command in main.commands.values():
        summary = " ".join(CliRunner().invoke(main, ["--help"], terminal_width=80).output.split())
        assert " ".join(command.get_short_help_str(1000).split()) in summary


def test_info_breaks_no_words_on_a_terminal(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore("out.h5")
    facts = describe(store)
    whole, narrow = report.description(facts, store, None), report.description(facts, store, 60)
    words = [word for line in whole.splitlines() for word in line.split()]
    assert words == narrow.split()
    assert max(map(len, narrow.splitlines()[1:])) <= 60  # the first has a path
    assert all(line[13:15] == "  " for line in narrow.splitlines())
    assert terminal.columns() is None
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "70")
    assert terminal.columns() == 70


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dumb_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.attended()
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal.attended()


def test_a_record_has_the_versions_of_what_computes_and_decodes(desk: Path) -> None:
    from importlib import metadata

    (done,) = FeatureStore("out.h5").runs()
    installed = {name for name in ("openvino", "simplejpeg", "pillow-heif") if _is_installed(name)}
    assert installed <= done["versions"].keys()
    assert all(done["versions"][name] == metadata.version(name) for name in installed)


def _is_installed(name: str) -> bool:
    from importlib import metadata

    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def test_every_argument_that_cannot_be_left_out_says_what_to_name() -> None:
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Argument) and parameter.required:
                assert hasattr(parameter, "_missing"), (name, parameter.name)
