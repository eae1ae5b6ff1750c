"""One line of JSON for every outcome, as the schema describes it, and as programs have come to rely on it."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from conftest import Run
from fake import FakeStart
from slow import slow, stopped

import rn50feat as package
from rn50feat import FeatureStore
from rn50feat.cli import ending
from rn50feat.cli.main import main
from rn50feat.durable.lock import run_lock
from rn50feat.errors import StoreError
from rn50feat.store.writer import StoreWriter

SCHEMA = ending.schema()
# What programs rely on. An additive change needs no new one: edit it only to release an incompatible change on purpose.
RELEASED = json.loads((Path(__file__).parent.parent / "outcome.schema.released.json").read_text(encoding="utf-8"))


def strict(schema: Any) -> Any:
    """Return a schema that takes no property that it does not name."""
    schema = copy.deepcopy(schema)

    def close(part: Any) -> None:
        for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            close(value)
        if isinstance(part, dict) and "properties" in part and "object" in part.get("type", ()):
            part.setdefault("additionalProperties", False)

    close([schema["$defs"], schema["properties"]])
    schema["unevaluatedProperties"] = False
    return schema


def told(output: str) -> dict[str, Any]:
    """Return the one object that was printed, once it is as both schemas say."""
    assert output.endswith("\n") and output.count("\n") == 1, output
    found: dict[str, Any] = json.loads(output)
    for schema in (strict(SCHEMA), RELEASED):
        jsonschema.validate(found, schema, jsonschema.Draft202012Validator)
    assert found["version"] == package.__version__
    assert found["started"] <= found["ended"]
    return found


@pytest.fixture
def folder(store: FeatureStore, start: FakeStart, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a store of five images, and one that could not be read; the engine is a fake."""
    monkeypatch.setitem(package.extract.__kwdefaults__, "start", start)
    monkeypatch.chdir(store.path.parent)
    (store.path.parent / "pictures/bad.png").write_text("text")
    package.extract(store.path.parent / "pictures", store.path, start=start)
    return store.path.parent


def outcome(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found = told(done.stdout)
    assert found["exit_code"] == done.returncode
    assert bool(found["error"]) == bool(done.returncode)
    assert "Error: " in done.stderr if found["error"] else "Error" not in done.stderr
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["extract", "pictures", "out.h5"], 0, None),
        (["extract", "pictures", "out.h5", "--prune"], 0, None),
        (["extract", "pictures", "out.h5", "--prune", "--dry-run"], 0, None),
        (["extract", "pictures", "out.h5", "--max-failures", "0", "--retry-failed"], 4, "1 of 1 images failed"),
        (["extract", "pictures", "out.h5", "--max-ledger", "16%"], 4, "1 of 6 images found are in the ledger"),
        (["extract", "missing", "out.h5"], 1, "missing: No such file or directory"),
        (["extract", "pictures", "out.h5", "--weights", "imagenet-v2"], 1, "out.h5 holds features with"),
        (["extract", "pictures", "new.h5", "--weights", "none.pth"], 1, "none.pth: no such file"),
        (["extract", "pictures", "out.h5", "--batch-size", "many"], 2, "Invalid value for '--batch-size'"),
        (["extract", "pictures", "out.h5", "--no-such-option"], 2, "No such option"),
        (["extract", "pictures"], 2, "Missing argument"),
        (["no-such-command"], 2, "No such command"),
        (["info", "--failures"], 0, None),
        (["info", "none.h5"], 1, "none.h5: No such file"),
        (["verify", "--sources"], 0, None),
        (["search", "--stored", "pictures/red.png"], 0, None),
        (["search", "--stored", "none.png"], 1, "has no image"),
        (["duplicates", "--threshold", "0.01"], 0, None),
        (["duplicates", "--exact"], 0, None),
        (["duplicates", "--csv"], 2, "--json and --csv cannot be combined"),
        (["export", "out.h5", "out.npy"], 0, None),
        (["export", "out.h5", "out.doc"], 1, "out.doc"),
        (["export", "out.h5", "qdrant", "--to", "qdrant"], 0, None),
        (["merge", "out.h5", "all.h5"], 0, None),
        (["compact"], 0, None),
        (["compact", "out.h5", "--to", "copy.h5"], 0, None),
        (["compact", "out.h5", "--to", "out.h5"], 1, "is the store itself"),
        (["relocate", "pictures", "elsewhere"], 0, None),
        (["relocate", "picture", "elsewhere", "out.h5"], 1, "has nothing in"),
        (["import", "out.npy", "all.h5"], 1, "out.npy"),
        (["map", "--html", "map.html"], 0, None),
        (["map"], 2, "name it with --html"),
        (["map", "--html", "map.png"], 1, "map.png does not end in .html"),
        (["convert", "none.pth", "out.safetensors"], 1, "none.pth"),
        (["bench", "missing"], 1, "missing"),
    ],
)
def test_every_outcome_is_one_line_of_json(folder: Path, arguments: list[str], code: int, error: str | None) -> None:
    done = CliRunner().invoke(main, [*arguments, "--json"])
    found = told(done.stdout)
    assert (done.exit_code, found["exit_code"]) == (code, code), done.output
    assert (error or "") in (found["error"] or "") and bool(error) == bool(found["error"])
    assert found["command"] == (None if arguments[0] == "no-such-command" else arguments[0])
    if "out.h5" in arguments and arguments[0] == "extract" and "--no-such-option" not in arguments:
        assert found["store"] == "out.h5"


def test_what_a_program_finds_beside_its_counts(folder: Path) -> None:

    def run(*arguments: str) -> dict[str, Any]:
        return told(CliRunner().invoke(main, [*arguments, "--json"]).stdout)

    assert run("index")["added"] == 5
    assert run("extract", "pictures", "out.h5", "--index")["index"]["rows"] == 5
    assert run("info")["index"]["behind"] == 0
    assert run("verify")["findings"] == []
    assert run("extract", "pictures", "out.h5", "--prune")["prune"] == {"done": True, "removed": 0, "reason": None}
    assert run("extract", "pictures", "out.h5")["prune"] is None
    assert run("model", "--variant", "keras")["variant"] == "keras"
    (folder / "out.faiss.json").write_text("{")
    assert run("info")["index"].keys() == {"error"}
    (finding,) = run("verify")["findings"]
    assert "out.faiss" in finding


def test_help_and_other_forms_are_no_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["extract", "--help", "--json"], ["extract", "--json", "--help"]):
        assert CliRunner().invoke(main, arguments).stdout.startswith("Usage")
    monkeypatch.setenv("RN50FEAT_JSON", "1")
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("rn50feat")
    assert CliRunner().invoke(main, ["search", "--stored", "pictures/red.png", "--csv"]).stdout.startswith("query,")
    two = CliRunner().invoke(main, ["search", "--stored", "x", "--csv", "--json"])
    assert "cannot be combined" in told(two.stdout)["error"]
    assert "Usage" in told(CliRunner().invoke(main, ["search"]).stdout)["error"]


def test_a_locked_store(rn50feat: Run, folder: Path) -> None:
    with run_lock(folder / "out.h5"):
        found = outcome(rn50feat("extract", "pictures", "out.h5", "--json"))
    assert found["exit_code"] == 75
    assert f"process {os.getpid()}" in found["error"]


def test_weights_that_are_not_available(rn50feat: Run, folder: Path) -> None:
    proxy = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "TORCH_HOME": str(folder / "torch")}
    found = outcome(rn50feat("extract", "pictures", "new.h5", "--json", **proxy))
    assert "resnet50-0676ba61.pth" in found["error"]


def test_a_bug_keeps_its_traceback_and_is_told(folder: Path) -> None:
    code = "import rn50feat.store.reader as s; s.FeatureStore.failures = 3; from rn50feat.cli.main import main; main()"
    command = [sys.executable, "-c", code, "info", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    found = told(done.stdout)
    assert (done.returncode, found["exit_code"]) == (1, 1)
    assert found["error"].startswith("TypeError: ")
    assert "Traceback" in done.stderr


def test_a_run_that_a_signal_stops(tmp_path: Path, pictures: Path) -> None:
    with slow(tmp_path, "-", "--json", "--prune") as process:
        output, _ = stopped(process, signal.SIGTERM)
    found = told(output.splitlines(keepends=True)[-1])
    assert (found["exit_code"], process.returncode, found["stopped"]) == (143, 143, "SIGTERM")
    assert (found["error"], found["new"]) == (None, 2)
    assert found["prune"] == {"done": False, "removed": 0, "reason": "stopped by SIGTERM"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_that_a_signal_ends(store: FeatureStore, number: signal.Signals) -> None:
    """Even while it is busy in a library: a thread prints the line."""
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from rn50feat.cli.main import main; from rn50feat.store.reader import FeatureStore;"
        "FeatureStore.failures = lambda store: (print('here', flush=True), time.sleep(60)); main()"
    )
    command = [sys.executable, "-c", code, "info", str(store.path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        output, messages = process.communicate()
    assert (process.returncode, messages) == (128 + number, "")
    assert told(output)["exit_code"] == 128 + number


def test_an_error_in_the_middle_counts_what_was_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: FakeStart
) -> None:
    """A disk that fills up, say: what is not in the store is not counted."""
    commit, commits = StoreWriter.commit, iter(range(9))

    def fills_up(self: Any, *, last: bool) -> None:
        if next(commits):
            raise StoreError("new.h5 cannot be written (No space left on device): free some space")
        commit(self, last=last)

    monkeypatch.setattr(StoreWriter, "commit", fills_up)
    with pytest.raises(StoreError) as refused:
        package.extract(
            "pictures", "new.h5", weights="random", start=start, commit_rows=2,
            options=package.EngineOptions(batch_size=2),
        )  # fmt: skip
    assert refused.value.summary.new + refused.value.summary.failed == 2


def test_two_failures_are_both_told_and_the_higher_code_counts(folder: Path) -> None:
    for name in ("red.png", "white.png", "z.png"):
        (folder / "pictures" / name).unlink()
    arguments = ("extract", "pictures", "out.h5", "--prune", "--max-failures", "0", "--retry-failed", "--json")
    done = CliRunner().invoke(main, [*arguments, "--max-ledger", "0"])
    found = told(done.stdout)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert (done.exit_code, len(lines)) == (4, 3)
    assert lines[0].startswith("Error: nothing was pruned: 3 of the 5 rows")
    assert found["error"] == "; ".join(line.removeprefix("Error: ") for line in lines)
    assert found["prune"]["reason"] in found["error"]


# The schema itself


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert {rule["if"]["properties"]["command"]["const"] for rule in SCHEMA["allOf"]} == set(main.commands)
    assert all("as_json" in [parameter.name for parameter in command.params] for command in main.commands.values())


def breaks(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Yield what a program that relies on the schema `old` could stumble over in what fits `new`."""
    for name, value in old.items() if isinstance(old, dict) else ():
        here = f"{at}/{name}"
        if not isinstance(new, dict) or name not in new:
            if name != "description":
                yield f"{here} is gone"
        elif name == "required":
            yield from (f"{here}/{one} is not required any more" for one in set(value) - set(new[name]))
        elif name in ("type", "enum"):
            before, after = ({one} if isinstance(one, str) else set(one) for one in (value, new[name]))
            yield from (f"{here} may be {one}" for one in after - before)
        elif name in ("anyOf", "allOf"):
            for i, part in enumerate(value):
                if all(list(breaks(part, other)) for other in new[name]):
                    yield f"{here}/{i} is another"
        elif name in ("const", "$ref", "format"):
            if value != new[name]:
                yield f"{here} is {new[name]}"
        else:
            yield from breaks(value, new[name], here)


def test_changes_are_compatible() -> None:
    assert list(breaks(RELEASED, SCHEMA)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new["$defs"]["hit"]["properties"].pop("score"),
        lambda new: new["$defs"]["hit"]["required"].remove("score"),
        lambda new: new["properties"]["store"].update(type="object"),
        lambda new: new["$defs"]["verify"]["properties"]["rows"].update(type=["integer", "null"]),
        lambda new: new["$defs"]["hit"]["properties"]["state"].update(type=["string", "null"]),
        lambda new: new["$defs"].pop("merge"),
        lambda new: new["allOf"].pop(0),
        lambda new: new["$defs"]["extract"]["then"]["anyOf"][0]["required"].remove("new"),
    ],
)
def test_changes_that_are_not_are_found(change: Any) -> None:
    new = copy.deepcopy(RELEASED)
    new["$defs"]["hit"]["properties"]["more"] = {"type": "string"}
    new["$defs"]["other"] = {"type": "object"}
    assert list(breaks(RELEASED, new)) == []
    change(new)
    assert list(breaks(RELEASED, new))


def test_what_a_library_prints_is_not_in_the_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def extract(*_: object, **settings: object) -> None:
        print("(raylet) A worker died")
        raise StoreError("new.h5 is in the way: move it")

    monkeypatch.setattr("rn50feat.extraction.extract.extract", extract)
    done = CliRunner().invoke(main, ["extract", "pictures", "new.h5", "--weights", "random", "--json"])
    assert json.loads(done.stdout)["error"] == "new.h5 is in the way: move it"
    assert "(raylet) A worker died" in done.stderr
