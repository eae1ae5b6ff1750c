"""The README and docs/ are true: their blocks are run, the help texts and the description of the file compared."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from conftest import Run
from readme import CONSOLE, DOCS, PAGES, README, ROOT, SCREENSHOT, blocks, examples, plain, run, with_reference

pytestmark = pytest.mark.slow

TEXT = README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example images, as the README assumes."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "examples/images", folder / "images")
    return folder


def test_every_example_prints_what_its_page_shows(desk: Path) -> None:
    assert [page for page in PAGES if blocks(page, "console")] == sorted(CONSOLE, key=PAGES.index)
    for page in CONSOLE:
        for command, shown in examples(page):
            assert plain(run(command, desk), desk) == plain(shown), f"{page.name}: {command}"


def test_the_python_block_runs(desk: Path) -> None:
    (block,) = blocks(README, "python")
    shutil.copy(desk / "images/coast.jpg", desk / "query.jpg")
    output = subprocess.run([sys.executable, "-c", block], cwd=desk, capture_output=True, encoding="utf-8", check=True)
    lines = output.stdout.splitlines()
    assert float(lines[0].split()[0]) == pytest.approx(1, abs=1e-3)  # the query may be computed in bf16
    assert lines[0].split()[1] in ("'images/coast.jpg'", "'images/again.jpg'")
    assert lines[-1].startswith("13 random:0 ['images/coast-cropped.jpg'")


def test_the_file_is_as_described(desk: Path) -> None:
    """Read the store with h5py and numpy alone, by the table in docs/file-format.md."""
    page = DOCS / "file-format.md"
    text = page.read_text(encoding="utf-8")
    reader, check = (block.replace('"out.h5', f'"{desk}/out.h5') for block in blocks(page, "python"))
    names: dict[str, object] = {}
    exec(reader, names)
    exec(check, {})
    (desk / "out.h5-journal").write_bytes(b"")
    with pytest.raises(SystemExit, match="run rn50feat info out.h5"):
        exec(check, {})
    run("rn50feat info out.h5", desk)
    exec(check, {})
    assert names["features"].shape == (len(names["paths"]), 2048)
    with h5py.File(desk / "out.h5") as file:
        documented = set()
        for row in re.findall(r"^\| (`.*?`(?:, `.*?`)*) \| \((\w)", text, re.MULTILINE):
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
        attributes = re.search(r"\| attributes \| \| (.*) \|", text)[1]
        assert set(re.findall(r"`(\w+)`", attributes)) == set(file.attrs)
        assert all((desk / path).exists() for path in file["paths"].asstr()[:])


def test_the_readme_is_short_and_has_a_small_screenshot() -> None:
    assert len(TEXT.splitlines()) <= 200
    assert SCREENSHOT.stat().st_size < 200_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)(.*?)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], link


def test_the_readme_links_to_every_page() -> None:
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in TEXT, page.name


def test_the_help_texts_are_those_of_the_program() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
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
            r"13 images, 2048 features each, float(16|32)\n'images/coast-cropped\.jpg': mean",
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
    programs = [["-c", block] for page in PAGES for block in blocks(page, "python")]
    for script, *arguments in (
        ("find_similar.py", "images", "query.jpg", "random"),
        ("cluster_with_scikit_learn.py", "out.h5", "2"),
        ("read_with_h5py.py", "out.h5"),
        ("use_faiss_directly.py", "out.h5"),
        ("pick_diverse.py", "out.h5", "2"),
        ("find_outliers.py", "out.h5"),
    ):
        programs.append([str(ROOT / "examples" / script), *arguments])
    assert len(programs) == 12
    for program in programs:
        done = subprocess.run([sys.executable, *program], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert rb"0\udcff.jpg'" in done.stdout or (program[0] == "-c" and "print" not in program[1])


def test_every_example_is_mentioned_and_tested() -> None:
    source = Path(__file__).read_text() + Path(__file__).with_name("test_examples.py").read_text()
    for script in (ROOT / "examples").glob("*.py"):
        assert f"(../examples/{script.name})" in (DOCS / "python.md").read_text(encoding="utf-8")
        assert script.name in source


def test_a_first_look_imports_nothing_heavy(rn50feat: Run) -> None:
    heavy = {"torch", "h5py", "PIL", "numpy", "tqdm", "faiss", "ray"}
    code = f"import sys, rn50feat.cli.main; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8").stdout == "[]\n"
