"""The command line, run as a process: what it prints where, its exit codes, and what it leaves alone."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import Result
from conftest import RN50FEAT, Run
from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat as package
from rn50feat.cli.main import main
from rn50feat.cli.options import memory
from rn50feat.durable.lock import run_lock
from rn50feat.engines.contract import EngineOptions

NAMES = ["plain.png", "a b.png", "quote'\".png", "line\nbreak\t.png", "🦜.png", os.fsdecode(b"\xff\xfe.png"), "\\x.png"]


@pytest.fixture
def store(tmp_path: Path, start: FakeStart) -> Path:
    """A store of oddly named pictures, and of failures, made by the fake engine under the name of random weights."""
    for i, name in enumerate(NAMES):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (9, 9), (255, 10 * i, 0)), "PNG"))
        path.with_name(f"bad{name}").write_text("text")
    package.extract(tmp_path / "pictures", tmp_path / "out.h5", weights="random", start=start)
    return tmp_path / "out.h5"


def test_extract_search_and_info_from_end_to_end(rn50feat: Run, scenes: Path, weights: Path, tmp_path: Path) -> None:
    done = rn50feat("extract", scenes, "out.h5", "--weights", weights, "--json", "--workers", "1")
    assert (done.returncode, json.loads(done.stdout)["new"]) == (0, 12)
    assert done.stderr.startswith("out.h5: 12 new, in ")
    query = scenes / "scene03.jpg"
    done = rn50feat("search", query, "-k", "2", "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert result["query"] == str(query)
    assert [hit["rank"] for hit in result["hits"]] == [1, 2]
    assert result["hits"][0]["path"] == os.path.relpath(query, tmp_path)
    assert result["hits"][0]["score"] == pytest.approx(1, abs=1e-6)
    (tmp_path / "list").write_text(f"{query}\n{scenes}\n")
    lines = rn50feat("search", "--from-file", "list", "-k", "1").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(query), *sorted(map(str, scenes.iterdir()))]
    shutil.copy(query, tmp_path / "line\nbreak.jpg")
    (tmp_path / "list").write_bytes(f"line\nbreak.jpg\0{query}\0".encode())
    done = rn50feat("search", "--from-file", "list", "-0", "-k", "1")
    assert done.stdout == f"{os.path.relpath(query, tmp_path)}\0" * 2
    done = rn50feat("search", "--from-file", "list", "-0", "-k", "1", "--json")
    assert [result["query"] for result in json.loads(done.stdout)["results"]] == ["line\nbreak.jpg", str(query)]
    done = rn50feat("search", "none.jpg", query, "gone.jpg", "-k", "1")
    assert (done.returncode, done.stdout.count("\n"), done.stderr.count("\n")) == (1, 1, 2)
    facts = json.loads(rn50feat("info", "--json").stdout)
    assert (facts["rows"], facts["provenance"]["weights"]) == (12, "seeded.pth")
    assert facts["runs"][0]["counts"]["new"] == 12


def test_a_run_with_nothing_to_do_imports_no_torch_and_reads_no_picture(rn50feat: Run, store: Path) -> None:
    program = (
        "import sys; from rn50feat.cli.main import main\n"
        "try: main(['extract', 'pictures', 'out.h5'])\n"
        "finally: print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=store.parent, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "7 unchanged, 7 failed before" in done.stderr


def test_names_survive_in_json(rn50feat: Run, store: Path) -> None:
    done = rn50feat("search", "--stored", "pictures/plain.png", "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert {hit["path"] for hit in result["hits"]} == {f"pictures/{name}" for name in NAMES}
    failures = json.loads(rn50feat("info", "--failures", "--json").stdout)["failures_list"]
    assert {failure["path"] for failure in failures} == {f"pictures/bad{name}" for name in NAMES}


def test_names_survive_in_the_other_forms(rn50feat: Run, store: Path) -> None:
    wanted = {f"pictures/{name}" for name in NAMES}
    by_name = ("search", "--stored", "pictures/line\nbreak\t.png")
    assert set(rn50feat(*by_name, "-0").stdout.split("\0")[:-1]) == wanted
    table = list(csv.DictReader(io.StringIO(rn50feat(*by_name, "--csv").stdout, newline="")))
    assert {row["path"] for row in table} == wanted
    lines = rn50feat(*by_name).stdout.split("\n")[:-1]
    assert len(lines) == len(NAMES)
    assert lines[0].split("\t") == [r"pictures/line\nbreak\t.png", "1", "1.000000", r"pictures/line\nbreak\t.png"]
    assert any(line.endswith(r"pictures/\\x.png") for line in lines)
    assert len(rn50feat("info", "--failures").stdout.split("\n")[:-1]) == len(NAMES)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("photo\u202egpj.exe.png", r"photo\u202egpj.exe.png"),
        ("C1\x9b, none\u200b, lines\u2028.png", r"C1\u009b, none\u200b, lines\u2028.png"),
        ("👩‍💻 naïve שלום.png", "👩‍💻 naïve שלום.png"),
        (os.fsdecode(b"\xff.png"), os.fsdecode(b"\xff.png")),
    ],
)
def test_what_cannot_be_seen_in_a_name_is_spelled_out(
    rn50feat: Run, store: Path, start: FakeStart, name: str, shown: str
) -> None:
    (store.parent / "pictures/a b.png").rename(store.parent / "pictures" / name)
    (store.parent / f"pictures/bad{name}").write_text("text")
    package.extract(store.parent / "pictures", store, start=start)
    lines = rn50feat("search", "--stored", f"pictures/{name}", "-k", "1").stdout.split("\n")
    assert lines[0].split("\t")[0] == f"pictures/{shown}"
    failures = rn50feat("info", "--failures").stdout.split("\n")
    assert f"pictures/bad{shown}" in [line.split("\t")[0] for line in failures]


def test_a_path_printed_with_0_is_one_to_search_by(rn50feat: Run, store: Path) -> None:
    printed = rn50feat("search", "--stored", "pictures/plain.png", "-0").stdout.rstrip("\0").split("\0")
    again = rn50feat("search", "-0", "-k", "1", *(part for path in printed for part in ("--stored", path)))
    assert again.stdout.rstrip("\0").split("\0") == printed
    done = rn50feat("search", "--stored", "none\n.png")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert r"has no image none\n.png: use a path" in done.stderr


def test_an_empty_list_of_queries(rn50feat: Run, store: Path) -> None:
    (store.parent / "list").write_text("\n")
    done = rn50feat("search", "--from-file", "list")
    assert (done.returncode, done.stderr) == (1, "Error: list names no image: list images or folders to search with\n")


def test_a_terminal_gets_a_table(store: Path) -> None:
    code = "import sys; sys.stdout.isatty = lambda: True; from rn50feat.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "search", "--stored", "pictures/plain.png", "-k", "1"]
    done = subprocess.run(arguments, cwd=store.parent, capture_output=True, encoding="utf-8")
    assert done.stdout == "pictures/plain.png\nrank   score  path\n   1  1.0000  pictures/plain.png\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["extract", "missing", "new.h5"], 1, "Error: missing: No such file or directory: name an existing"),
        (["extract", "pictures", "no/such/folder/new.h5"], 1, "new.h5 cannot be written (No such file or directory)"),
        (["extract", "pictures", "text.h5"], 1, "text.h5 is not an HDF5 file"),
        (
            ["extract", "pictures", "out.h5", "--weights", "random:1"],
            1,
            "use another file, or --overwrite, which discards all its rows",
        ),
        (
            ["extract", "pictures", "new.h5", "--weights", "nowhere.pth"],
            1,
            "nowhere.pth: no such file: use imagenet-v1",
        ),
        (["extract", "empty", "new.h5", "--weights", "random"], 1, "no image in the sources of"),
        (["extract", "pictures", "new.h5", "--weights", "random", "--device", "tpu"], 1, "there is no device tpu"),
        (["extract", "pictures"], 2, "Missing argument"),
        (["extract", "pictures", "new.h5", "--batch-size", "-1"], 2, "--batch-size"),
        (["extract", "pictures", "out.h5", "--force"], 2, "--force requires --prune"),
        (["extract", "pictures", "out.h5", "--prune-limit", "50"], 2, "--prune-limit requires --prune"),
        (
            ["search", "--stored", "pictures/plain.png", "--json", "--csv"],
            2,
            "--json and --csv cannot be combined: choose one",
        ),
        (
            ["search", "--stored", "pictures/plain.png", "-0", "--csv"],
            2,
            "--csv and --null cannot be combined: choose one",
        ),
        (
            ["search", "--stored", "pictures/plain.png", "--min-score", "nan"],
            1,
            "--min-score nan is not a finite number: use one",
        ),
        (["duplicates", "--csv", "--json"], 2, "--json and --csv cannot be combined: choose one"),
        (["search"], 2, "Usage"),
        (["search", "out.h5"], 2, "Give a QUERY image, or --stored PATH"),
        (["search", "none.jpg"], 1, "none.jpg cannot be found: No such file or directory: name an existing image"),
        (["search", "text.h5", "pictures/plain.png"], 1, "text.h5 is not an HDF5 file"),
        (["search", "a.h5", "b.h5", "pictures/plain.png"], 2, "More than one STORE (a.h5, b.h5): name one"),
        (["search", "--stored", "none"], 1, "has no image none"),
        (["search", "--stored", "pictures/plain.png", "--metric", "l2", "--min-score", "1"], 1, "l2 is a distance"),
        (["info", "missing.h5"], 1, "missing.h5: No such file or directory"),
    ],
)
def test_mistakes_get_one_line_and_harm_nothing(
    rn50feat: Run, store: Path, arguments: list[str], code: int, message: str
) -> None:
    (store.parent / "text.h5").write_text("notes")
    (store.parent / "empty").mkdir()
    before = {path: path.read_bytes() for path in store.parent.glob("*.h5")}
    done = rn50feat(*arguments)
    assert (done.returncode, done.stdout.count("\n")) == (code, "--json" in arguments)
    assert "--json" in arguments or not done.stdout
    assert message in done.stderr
    assert message == "Usage" or done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in store.parent.glob("*.h5*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirected", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["info"],
        ["search", "--stored", "pictures/plain.png"],
        ["extract", "pictures", "out.h5", "--json", "--quiet"],
    ],
)
def test_results_that_cannot_be_printed_are_told_of(
    store: Path, arguments: list[str], redirected: str, reason: str
) -> None:
    done = shell(store.parent, redirected, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"Error: standard output cannot be written ({reason}): ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_messages_that_cannot_be_written_end_no_run(store: Path, redirected: str) -> None:
    (store.parent / "pictures/plain.png").unlink()
    assert shell(store.parent, redirected, "extract", "pictures", "out.h5", "--prune").returncode == 0
    assert len(package.FeatureStore(store)) == len(NAMES) - 1
    with run_lock(store):
        assert shell(store.parent, redirected, "extract", "pictures", "out.h5").returncode == 75


def test_closed_streams_get_mixed_up_with_nothing(scenes: Path, weights: Path, tmp_path: Path) -> None:
    picture = str(sorted(scenes.iterdir())[0])
    extract = ("extract", picture, "out.h5", "--weights", str(weights), "--workers", "1")
    assert shell(tmp_path, "<&- >&- 2>&-", *extract).returncode == 0
    done = shell(tmp_path, "<&-", "search", picture, "out.h5", "--workers", "1")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    done = shell(tmp_path, "<&-", "extract", "--from-file", "-", "out.h5")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr


def shell(folder: Path, redirected: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program with its streams redirected as a shell says it."""
    command = ["sh", "-c", f'exec "$0" "$@" {redirected}', *RN50FEAT, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.txt", "x.txt does not end in .h5 or .hdf5"),
        ("out", "out does not end in .h5 or .hdf5"),
        ("s3://b/out.h5", "s3:/b/out.h5 looks like a URL, but a store must be a local file"),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [["extract", "pictures"], ["extract", "--dry-run", "pictures"], ["import", "rows.npy"], ["merge", "out.h5"]],
)
def test_a_new_store_has_a_name_that_commands_know_it_by(
    rn50feat: Run, store: Path, arguments: list[str], name: str, reason: str
) -> None:
    np.save(store.parent / "rows.npy", np.ones((1, 2048), np.float32))
    (store.parent / "rows.paths.txt").write_text("one.png")
    done = rn50feat(*arguments, name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"Error: {reason}")


def test_a_store_that_is_there_may_have_any_name(rn50feat: Run, store: Path) -> None:
    store.rename(store.with_name("out"))
    assert "7 unchanged" in rn50feat("extract", "pictures", "out").stderr


def test_weights_that_cannot_be_downloaded(rn50feat: Run, store: Path, tmp_path: Path) -> None:
    proxy = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "TORCH_HOME": str(tmp_path / "torch")}
    done = rn50feat("extract", "pictures", "new.h5", **proxy)
    assert done.returncode == 1
    assert "resnet50-0676ba61.pth cannot be downloaded" in done.stderr
    assert f"put it at {tmp_path}/torch/hub/checkpoints/resnet50-0676ba61.pth" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new.h5").exists()


def test_the_store_is_named_or_alone(rn50feat: Run, store: Path) -> None:
    assert rn50feat("info").returncode == 0
    (store.parent / "other.hdf5").write_bytes(store.read_bytes())
    (store.parent / "notes.h5").write_text("no store")
    done = rn50feat("info")
    assert done.returncode == 1
    assert "2 stores (other.hdf5, out.h5): name one" in done.stderr
    assert rn50feat("info", RN50FEAT_STORE="out.h5").returncode == 0
    assert "gone.h5, which RN50FEAT_STORE names, is not there" in rn50feat("info", RN50FEAT_STORE="gone.h5").stderr
    assert rn50feat("info", "other.hdf5").stdout.startswith(f"store          {store.parent}/other.hdf5")
    assert rn50feat("search", "other.hdf5", "--stored", "pictures/plain.png").returncode == 0
    for path in store.parent.glob("*.h*5"):
        path.unlink()
    assert "there is no store in the current folder" in rn50feat("info").stderr


def test_a_second_run_leaves_at_once_with_75(rn50feat: Run, store: Path) -> None:
    with run_lock(store):
        done = rn50feat("extract", "pictures", "out.h5")
        assert rn50feat("info").returncode == 0
    assert (done.returncode, done.stderr.count("\n")) == (75, 1)
    assert f"out.h5 is in use by process {os.getpid()} on " in done.stderr


def test_random_weights_are_marked_in_every_output(rn50feat: Run, store: Path) -> None:
    for arguments in (["extract", "pictures", "out.h5"], ["search", "--stored", "pictures/plain.png"], ["info"]):
        done = rn50feat(*arguments)
        assert "random" in done.stdout + done.stderr
    assert json.loads(rn50feat("search", "--stored", "pictures/plain.png", "--json").stdout)["weights"] == "random:0"


def test_the_package_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "rn50feat", "--version"], capture_output=True, encoding="utf-8")
    assert done.stdout == f"rn50feat, version {package.__version__}\n"


def test_quiet_is_quiet(rn50feat: Run, store: Path) -> None:
    done = rn50feat("extract", "pictures", "out.h5", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_options_can_be_set_by_variables(rn50feat: Run, store: Path) -> None:
    done = rn50feat("extract", "pictures", "out.h5", RN50FEAT_QUIET="1", RN50FEAT_JSON="1")
    assert json.loads(done.stdout)["unchanged"] == 7
    assert done.stderr == ""
    done = rn50feat("search", "--stored", "pictures/plain.png", "--csv", RN50FEAT_JSON="1")
    assert done.stdout.startswith("query,rank,")
    done = rn50feat("search", "--stored", "pictures/plain.png", RN50FEAT_NEIGHBOURS="2")
    assert done.stdout.count("\n") == 2


def test_a_picture_that_vanished_leaves_its_row(rn50feat: Run, store: Path) -> None:
    (store.parent / "pictures/plain.png").write_text("changed")
    (store.parent / "pictures/a b.png").unlink()
    done = rn50feat("search", "--stored", "pictures/plain.png", "-k", "3")
    assert [line.split("\t")[3:] for line in done.stdout.splitlines()] == [
        ["pictures/plain.png", "changed"],
        ["pictures/a b.png", "missing"],
        ["pictures/quote'\".png"],
    ]


def test_a_bug_keeps_its_traceback(store: Path) -> None:
    code = "from rn50feat.cli.main import main; import rn50feat.store.reader as s; s.FeatureStore.failures = 3; main()"
    done = subprocess.run([sys.executable, "-c", code, "info"], cwd=store.parent, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_defaults_are_those_of_the_library() -> None:
    for name, function in (
        ("extract", package.extract),
        ("search", package.search),
        ("index", package.index),
        ("duplicates", package.duplicates),
    ):
        library = {key: value.default for key, value in inspect.signature(function).parameters.items()}
        library |= dataclasses.asdict(EngineOptions())
        for parameter in main.commands[name].params:
            if isinstance(parameter, click.Option) and parameter.name in library:
                default = memory(parameter.default) if parameter.name == "max_ram" else parameter.default
                assert default == library[parameter.name] or not library[parameter.name], parameter.name


def test_every_command_and_option_has_help() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)
                variables = {
                    "RN50FEAT_" + opt[2:].replace("-", "_").upper() for opt in parameter.opts if opt[:2] == "--"
                }
                assert parameter.envvar in variables


@pytest.mark.slow
def test_float16_is_what_it_says(here: Callable[..., Result], scenes: Path) -> None:
    one = sorted(scenes.iterdir())[0]
    exact, rough = ["--precision", "fp32"], ["--precision", "bf16"]  # which torch emulates anywhere
    settings = ["--overwrite", "--weights", "random", "--device", "cpu", "--backend", "torch"]
    for arguments, dtype in ((exact, "float32"), (rough, "float16"), ([*exact, "--dtype", "float16"], "float16")):
        done = here("extract", one, "o.h5", *settings, *arguments)
        assert done.exit_code == 0, done.stderr
        assert package.FeatureStore("o.h5").dtype == np.dtype(dtype)


def test_a_fifo_in_the_folder_is_no_store(rn50feat: Run, store: Path) -> None:
    os.mkfifo(store.parent / "pipe.h5")
    assert "out.h5: 7 rows" in rn50feat("verify").stderr


def test_help_on_a_full_disk_is_one_line(rn50feat: Run) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*RN50FEAT, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: standard output cannot be written (No space left on device): free some space, or redirect it\n"
    )
