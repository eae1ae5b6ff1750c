"""The README tells what is: its blocks are run, its help texts and its description of the file compared."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from conftest import RN50FEAT, Run
from readme import README, REFERENCE, ROOT, with_reference

TEXT = README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example pictures, as the README has it."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "examples/images", folder / "images")
    return folder


def run(command: str, folder: Path) -> str:
    """Run a command as a person would, and return what it prints: stdout, then stderr."""
    program = f'rn50feat() {{ {shlex.join(RN50FEAT)} "$@"; }}; {command}'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RN50FEAT")}
    environment |= {"RN50FEAT_DEVICE": "cpu", "RN50FEAT_PRECISION": "fp32"}  # as the README says, whatever is here
    done = subprocess.run(["bash", "-c", program], cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    return done.stdout + done.stderr


def plain(text: str, folder: Path | None = None) -> str:
    """Return a text without what differs from run to run: places, times, sizes, and the last digits of scores."""
    if folder is not None:
        text = text.replace(str(folder), "/…")
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE", text)
    text = re.sub(r"in \d+\.\d s", "in SECONDS", text)
    text = re.sub(r"\(\d+(\.\d+)? kB\)", "(SIZE)", text)
    text = re.sub(r"SHA-256 [0-9a-f]{8}…", "SHA-256 …", text)  # the last digits of what torch draws are the processor's
    text = re.sub(r"^cache  .*", "cache", text, flags=re.MULTILINE)  # of this machine
    text = re.sub(r"\d\.\de-\d\d|0\.0e\+00", "ROUNDING", text)
    return re.sub(r"\b[01]\.\d{4,}", lambda match: f"{float(match[0]):.2f}", text)


def test_every_console_block_prints_what_it_says(desk: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 5
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.MULTILINE):
        assert plain(run(command, desk), desk) == plain(expected), command


def test_the_python_block_runs(desk: Path) -> None:
    block = re.search(r"## Python\n\n```python\n(.*?)```", TEXT, re.DOTALL)[1]
    ast.parse(block)
    shutil.copy(desk / "images/coast.jpg", desk / "query.jpg")
    output = subprocess.run([sys.executable, "-c", block], cwd=desk, capture_output=True, encoding="utf-8", check=True)
    lines = output.stdout.splitlines()
    assert float(lines[0].split()[0]) == pytest.approx(1, abs=1e-3)  # the query may be computed in bf16
    assert lines[0].split()[1] in ("'images/coast.jpg'", "'images/again.jpg'")
    assert lines[-1].startswith("13 random:0 ['images/coast-cropped.jpg'")


def test_the_file_is_as_described(desk: Path) -> None:
    """Read the store with h5py and numpy alone, by the README's own table."""
    reader = re.search(r"```python\n(import h5py\n.*?)```", TEXT, re.DOTALL)[1]
    names: dict[str, object] = {}
    exec(reader.replace('"out.h5"', repr(str(desk / "out.h5"))), names)
    assert names["features"].shape == (len(names["paths"]), 2048)
    with h5py.File(desk / "out.h5") as file:
        documented = set()
        for row in re.findall(r"^\| (`.*?`(?:, `.*?`)*) \| \((\w)", TEXT, re.MULTILINE):
            listed = re.findall(r"`(.*?)`", row[0])
            group = listed[0].partition("/")[0] + "/" if "/" in listed[0] else ""
            for name in (listed[0], *(group + other for other in listed[1:])):
                documented.add(name)
                assert name in file, name
                lengths = {"N": 13, "M": 1, "A": 0, "D": 0, "R": len(file["runs"]), "C": len(file["history"])}
                assert len(file[name]) == lengths[row[1]], name
        present: set[str] = set()
        file.visititems(lambda name, item: present.add(name) if isinstance(item, h5py.Dataset) else None)
        assert documented == present
        attributes = re.search(r"\| attributes \| \| (.*) \|", TEXT)[1]
        assert set(re.findall(r"`(\w+)`", attributes)) == set(file.attrs)
        assert all((desk / path).exists() for path in file["paths"].asstr()[:])


def test_the_help_texts_are_those_of_the_program() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    assert with_reference(page) == page, "run: make readme"


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^    make (\w+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("find_similar.py", "images", "images/ridge.jpg", "random"), r"1\.0000  'ridge\.jpg'\n.* 'ridge-low"),
        (
            ("read_with_h5py.py", "out.h5"),
            r"13 pictures, 2048 features each, float(16|32)\n'images/coast-cropped\.jpg': mean",
        ),
        (("use_faiss_directly.py", "out.h5"), r"1\.0000  'images/again\.jpg'  'images/coast\.jpg'"),
        (("cluster_with_scikit_learn.py", "out.h5", "3"), r"(?s)0  'images/.*1  'images/.*2  'images/"),
    ],
)
def test_the_examples_run(desk: Path, arguments: tuple[str, ...], expected: str) -> None:
    script, *rest = arguments
    output = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *rest], cwd=desk, capture_output=True, encoding="utf-8", check=True
    )
    assert re.search(expected, output.stdout), output.stdout


def test_the_examples_and_blocks_take_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(ROOT / "examples/images/coast.jpg", tmp_path / "query.jpg")
    for i, name in enumerate(("coast", "ridge", "hills")):
        shutil.copy(ROOT / f"examples/images/{name}.jpg", os.fsencode(tmp_path / "images") + b"/%d\xff.jpg" % i)
    assert "3 new" in run("rn50feat extract images out.h5 --weights random && rn50feat index out.h5", tmp_path)
    blocks = [["-c", block] for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)]
    arguments = {"find_similar": ("images", "query.jpg", "random"), "cluster_with_scikit_learn": ("out.h5", "2")}
    for script in (ROOT / "examples").glob("*.py"):
        blocks.append([str(script), *arguments.get(script.stem, ("out.h5",))])
    assert len(blocks) == 6
    for block in blocks:
        done = subprocess.run([sys.executable, *block], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert rb"0\udcff.jpg'" in done.stdout or (block[0] == "-c" and "print" not in block[1])


def test_every_example_is_mentioned_and_tested() -> None:
    source = Path(__file__).read_text()
    for script in (ROOT / "examples").glob("*.py"):
        assert f"examples/{script.name}" in TEXT
        assert script.name in source


def test_a_first_look_imports_nothing_heavy(rn50feat: Run) -> None:
    heavy = {"torch", "h5py", "PIL", "numpy", "tqdm", "faiss", "ray"}
    code = f"import sys, rn50feat.cli.main; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8").stdout == "[]\n"
