"""importing: features of other programs become rows, with what is known of them and no more."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import Run, rows
from fake import FakeStart
from stores import store, values

from rn50feat import FeatureStore, export, extract, import_features, merge, search
from rn50feat.errors import ExchangeError, ProvenanceError, SourceError, StoreError, WeightsError
from rn50feat.exchange import importing
from rn50feat.extraction.verify import verify
from rn50feat.searching.search import search_stored
from rn50feat.store.session import WriteSession

NAMES = ["red.png", "sub/blue.png", "gone.png"]


@pytest.fixture
def desk(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and features of two of them, and of one that is gone, as the working folder."""
    monkeypatch.chdir(pictures.parent)
    numbers = np.zeros((3, 2048), np.float32)
    numbers[:, :3] = [[255, 0, 0], [0, 0, 255], [7, 7, 7]]
    np.save("old.npy", numbers)
    Path("old.paths.txt").write_text("".join(f"pictures/{name}\n" for name in NAMES))
    return pictures.parent


def test_rows_get_what_is_known_of_their_files(desk: Path, caplog: pytest.LogCaptureFixture) -> None:
    summary = import_features("old.npy", "out.h5", weights="random")
    assert (summary.new, summary.found) == (3, 3)
    opened = FeatureStore("out.h5")
    assert opened.paths() == [f"pictures/{name}" for name in NAMES]
    assert np.array_equal(opened.block(0, 9), np.load("old.npy"))
    red, _, gone = opened.references(0, 3)
    data, status = Path("pictures/red.png").read_bytes(), os.stat("pictures/red.png")
    assert (red.size, red.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert red.digest == hashlib.blake2b(data, digest_size=16).digest()
    assert (gone.size, gone.mtime_ns, gone.digest) == (0, 0, bytes(16))
    assert [(record.levelno, record.getMessage()[:19]) for record in caplog.records] == [
        (logging.WARNING, "cannot read 1 image")
    ]
    (run,) = opened.runs()
    assert (run["command"], run["source"], run["precision"]) == ("import", str(desk / "old.npy"), "unstated")
    report = verify(opened, sources=True)
    assert report.findings == []
    assert report.notes == ["3 files hashed: 1 gone, 0 changed since their rows were made"]


def test_extract_goes_on_from_an_import(desk: Path, start: FakeStart) -> None:
    import_features("old.npy", "out.h5", weights="random")
    extract("pictures/red.png", "copy.h5", weights="random", start=start)
    (desk / "pictures/gone.png").write_bytes((desk / "pictures/white.png").read_bytes())
    summary = extract("pictures", "out.h5", start=start)
    assert (summary.unchanged, summary.changed, summary.new) == (2, 1, 3)
    assert values(desk / "out.h5")["pictures/gone.png"] == 255
    (desk / "pictures/gone.png").unlink()
    assert extract("pictures", "out.h5", start=start, prune=True).removed == 1


def test_rows_are_found_by_picture_and_by_stored_path(desk: Path, start: FakeStart) -> None:
    import_features("old.npy", "out.h5", weights="random")
    (result,) = search_stored(["pictures/gone.png"], "out.h5", k=1)
    assert result.hits[0].path == "pictures/gone.png"
    (result,) = search("pictures/sub/blue.png", "out.h5", k=1, start=start)
    assert (result.hits[0].path, result.hits[0].score) == ("pictures/sub/blue.png", pytest.approx(1))


def test_features_of_which_there_are_only_words_are_searched_by_path_alone(
    desk: Path, start: FakeStart, rn50feat: Run
) -> None:
    np.save("old.npy", -np.load("old.npy"))
    import_features("old.npy", "out.h5", made_by="our caffe model of 2016")
    opened = FeatureStore("out.h5")
    assert (opened.provenance.network, opened.provenance.weights) == ("our caffe model of 2016", "unstated")
    claims = json.loads(opened.provenance.to_json())["preprocessing"].values()
    assert all(claim in ("unstated", 0, []) for claim in claims)
    assert search_stored(["pictures/gone.png"], "out.h5", k=1)[0].hits[0].path == "pictures/gone.png"
    message = (
        "imported, made by our caffe model of 2016, and no image can be embedded the same way: search with --stored"
    )
    for attempt in (
        lambda: search("pictures/red.png", "out.h5", start=start),
        lambda: extract("pictures", "out.h5", start=start),
        lambda: extract("pictures", "out.h5", weights="random", start=start),
    ):
        with pytest.raises(WeightsError, match=message):
            attempt()
    assert start.engines == []
    assert import_features("old.npy", "out.h5", made_by="our caffe model of 2016").unchanged == 3
    with pytest.raises(ProvenanceError, match="you asked for another: import into another store$"):
        import_features("old.npy", "out.h5", made_by="another")
    assert "made by        our caffe model of 2016, according to the import" in rn50feat("info").stdout


def test_what_made_the_features_must_be_said_and_can_be_refuted(desk: Path) -> None:
    numbers = np.load("old.npy")
    with pytest.raises(ExchangeError, match="does not say what made its features: use --weights"):
        import_features("old.npy", "out.h5")
    with pytest.raises(ExchangeError, match="--weights and --made-by cannot be combined"):
        import_features("old.npy", "out.h5", weights="random", made_by="me")
    with pytest.raises(ExchangeError, match="require --weights"):
        import_features("old.npy", "out.h5", made_by="me", exif=False)
    with pytest.raises(ExchangeError, match="names.npy is an array of names, not lines"):
        import_features("old.npy", "out.h5", paths="names.npy", null=True, made_by="me")
    with pytest.raises(ExchangeError, match="- has to be read twice"):
        import_features("old.npy", "out.h5", paths="-", made_by="me")
    np.save("old.npy", numbers - 1)
    with pytest.raises(ExchangeError, match="negative values.* use --made-by"):
        import_features("old.npy", "out.h5", weights="random")
    np.save("old.npy", numbers / np.linalg.norm(numbers, axis=1, keepdims=True))
    with pytest.raises(ExchangeError, match="rows normalised to length 1.* use --made-by"):
        import_features("old.npy", "out.h5", weights="random")
    assert not Path("out.h5").exists()
    assert import_features("old.npy", "out.h5", made_by="me").new == 3


def test_a_store_of_another_provenance_is_refused(desk: Path) -> None:
    store(desk / "out.h5", [])
    with pytest.raises(ProvenanceError, match="random:0.*you asked for random:7: import into another store$"):
        import_features("old.npy", "out.h5", weights="random:7")
    with pytest.raises(ProvenanceError, match="exif applied, you asked for ignored"):
        import_features("old.npy", "out.h5", weights="random", exif=False)


def test_features_of_keras_are_stated_as_such(desk: Path) -> None:
    import_features("old.npy", "out.h5", weights="random", variant="keras")
    provenance = FeatureStore("out.h5").provenance
    assert (provenance.network, provenance.preprocessing.name) == ("keras resnet50", "keras")


def test_an_import_adds_and_never_replaces(desk: Path, start: FakeStart) -> None:
    extract("pictures/red.png", "out.h5", weights="random", start=start)
    np.save("old.npy", np.load("old.npy") + 1)
    summary = import_features("old.npy", "out.h5", weights="random")
    assert (summary.new, summary.unchanged) == (2, 1)
    assert values(desk / "out.h5") == {"pictures/red.png": 255, "pictures/sub/blue.png": 1, "pictures/gone.png": 8}
    assert import_features("old.npy", "out.h5", weights="random").unchanged == 3


def test_an_import_that_is_stopped_goes_on_later(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BLOCK", 1)
    stops = iter([None, "SIGINT"])
    summary = import_features("old.npy", "out.h5", weights="random", should_stop=lambda: next(stops))
    assert (summary.new, summary.stopped) == (1, "SIGINT")
    summary = import_features("old.npy", "out.h5", weights="random")
    assert (summary.new, summary.unchanged) == (2, 1)


def test_an_error_on_the_way_leaves_what_was_committed(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BLOCK", 1)
    monkeypatch.setitem(WriteSession.__init__.__kwdefaults__, "commit_rows", 1)
    numbers = np.load("old.npy")
    numbers[2, 5] = -1
    np.save("old.npy", numbers)
    with pytest.raises(ExchangeError, match="negative"):
        import_features("old.npy", "out.h5", weights="random")
    assert len(FeatureStore("out.h5")) == 2


def test_rows_that_are_none_go_into_the_ledger(desk: Path) -> None:
    numbers = np.load("old.npy")
    numbers[0], numbers[1, 9] = 0, np.nan
    np.save("old.npy", numbers.astype(np.float64))
    summary = import_features("old.npy", "out.h5", weights="random")
    assert (summary.new, summary.failed) == (1, 2)
    assert {f.path: f.reason for f in FeatureStore("out.h5").failures()} == {
        "pictures/red.png": "has features that are all zero",
        "pictures/sub/blue.png": "has features that are not finite in float32",
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_all_not_finite_are_not_taken_for_normalised_ones(desk: Path, value: float) -> None:
    np.save("old.npy", np.full((3, 2048), value, np.float32))
    summary = import_features("old.npy", "out.h5", weights="random")
    assert (summary.new, summary.failed) == (0, 3)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_the_dtype_is_that_of_the_features(desk: Path, kind: str) -> None:
    np.save("old.npy", np.load("old.npy").astype(kind))
    import_features("old.npy", "out.h5", weights="random")
    assert FeatureStore("out.h5").dtype == ("float16" if kind == "float16" else "float32")
    import_features("old.npy", "half.h5", weights="random", dtype="float16")
    assert FeatureStore("half.h5").dtype == np.float16
    if kind != "float16":
        with pytest.raises(StoreError, match="give --dtype float16 to round"):
            import_features("old.npy", "half.h5", weights="random")


def test_paths_come_from_other_lists_and_folders(desk: Path) -> None:
    np.save("names.npy", np.array(NAMES))
    import_features("old.npy", "a.h5", weights="random", paths="names.npy", root="pictures")
    Path("names.bin").write_bytes(b"".join(b"pictures/%s\0" % name.encode() for name in NAMES))
    import_features("old.npy", "b.h5", weights="random", paths="names.bin", null=True)
    assert values(desk / "a.h5") == values(desk / "b.h5") == dict(zip((f"pictures/{n}" for n in NAMES), (255, 0, 7)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:2], "has 3 rows, but 2 paths"),
        ([*NAMES, "more"], "has 3 rows, but 4 paths"),
        (["a", "b", "./a"], "has two rows for .*/a: remove one"),
    ],
)
def test_paths_that_do_not_fit_are_refused(desk: Path, names: list[str], message: str) -> None:
    Path("old.paths.txt").write_text("\n".join(names))
    with pytest.raises(ExchangeError, match=message):
        import_features("old.npy", "out.h5", weights="random")
    assert not Path("out.h5").exists()


def test_what_is_no_file_of_features_says_so(desk: Path) -> None:
    np.save("wide.npy", np.zeros((3, 512), np.float32))
    np.save("whole.npy", np.zeros((3, 2048), np.int64))
    np.save("objects.npy", np.array([{}, {}]), allow_pickle=True)
    Path("text.npy").write_text("text")
    pandas.DataFrame({"path": ["a"], "vector": [[1.0, 2.0]]}).to_parquet("short.parquet")
    pandas.DataFrame({"path": ["a"], "vector": ["x"]}).to_parquet("words.parquet")
    pandas.DataFrame({"path": ["a"], "vector": [[1, 2]]}).to_parquet("whole.parquet")
    pandas.DataFrame({"path": [1], "vector": [[1.0, 2.0]]}).to_parquet("number.parquet")
    pandas.DataFrame({"path": ["a", None], "vector": [[1.0, 2.0]] * 2}).to_parquet("null.parquet")
    Path("text.parquet").write_text("text")
    for name, column, message in (
        ("old.npy", "x", "has no columns: leave out --column"),
        ("wide.npy", "", r"holds float32 of shape \(3, 512\): name a file of rows of 2048"),
        ("whole.npy", "", "holds int64"),
        ("objects.npy", "", "is not a .npy file of numbers or names"),
        ("text.npy", "", "is not a .npy file of numbers or names"),
        ("none.npy", "", "none.npy cannot be read"),
        ("old.csv", "", "neither a .npy nor a .parquet file"),
        ("none.parquet", "", "none.parquet cannot be read as Parquet"),
        ("text.parquet", "", "cannot be read as Parquet"),
        ("short.parquet", "features", "has no column features, but path, vector: .* --column"),
        ("short.parquet", "vector", "has lists in its column vector that are not of 2048 floats"),
        ("words.parquet", "vector", "has .*string in its column vector, not lists"),
        ("whole.parquet", "vector", "has list.*int64.* in its column vector, not lists of 2048 floats"),
        ("number.parquet", "vector", "has int64 in its column path"),
        ("null.parquet", "vector", "has rows without a path"),
    ):
        with pytest.raises(ExchangeError, match=message):
            import_features(name, "out.h5", weights="random", column=column or None)
    assert not Path("out.h5").exists()
    Path("old.paths.txt").unlink()
    with pytest.raises(SourceError, match="old.paths.txt cannot be read"):
        import_features("old.npy", "out.h5", weights="random")


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_an_export_comes_back_as_it_was(desk: Path, start: FakeStart, suffix: str) -> None:
    extract("pictures", "out.h5", weights="random", start=start)
    export("out.h5", f"rows{suffix}")
    stated = {"weights": "random"} if suffix == ".npy" else {}
    assert import_features(f"rows{suffix}", "again.h5", **stated).new == 5
    before, after = FeatureStore("out.h5"), FeatureStore("again.h5")
    assert before.references(0, 9) == after.references(0, 9)
    assert {k: v.tolist() for k, v in rows(desk / "again.h5").items()} == {
        k: v.tolist() for k, v in rows(desk / "out.h5").items()
    }
    assert before.provenance.difference(after.provenance) is None
    assert merge(["again.h5"], "out.h5").unchanged == 5


def test_a_parquet_file_of_another_program(desk: Path) -> None:
    numbers = np.load("old.npy")
    frame = pandas.DataFrame(
        {"path": [f"pictures/{name}" for name in NAMES], "vector": [row.tolist() for row in numbers]}
    )
    frame.to_parquet("theirs.parquet")
    with pytest.raises(ExchangeError, match="does not say what made its features"):
        import_features("theirs.parquet", "out.h5", column="vector")
    with pytest.raises(ExchangeError, match="has its paths in its column path: leave out --paths and --null"):
        import_features("theirs.parquet", "out.h5", column="vector", paths="old.paths.txt")
    assert import_features("theirs.parquet", "out.h5", column="vector", weights="random").new == 3
    assert np.array_equal(FeatureStore("out.h5").block(0, 9), numbers)


def test_a_normalised_export_does_not_come_back_as_rows(desk: Path, start: FakeStart) -> None:
    extract("pictures", "out.h5", weights="random", start=start)
    export("out.h5", "rows.parquet", normalize=True)
    with pytest.raises(ExchangeError, match="rows normalised to length 1"):
        import_features("rows.parquet", "again.h5")


def test_the_command_line(desk: Path, rn50feat: Run) -> None:
    done = rn50feat("import", "old.npy", "out.h5", "--weights", "random", "--json")
    assert (done.returncode, json.loads(done.stdout)["new"]) == (0, 3)
    assert done.stderr.splitlines()[0].startswith("Warning: cannot read 1 image at the path given")
    assert done.stderr.splitlines()[1].startswith("out.h5: 3 new, in ")
    assert "import: 3 new" in rn50feat("info").stdout
    done = rn50feat("import", "old.npy", "out.h5")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert rn50feat("import", "old.npy").returncode == 2


def test_paths_that_a_store_cannot_hold_cost_their_rows_only(desk: Path) -> None:
    np.save("names.npy", np.array(["pictures/red.png", "a\0b.png", "\ud800/c.png"]))
    for _ in range(2):
        import_features("old.npy", "out.h5", paths="names.npy", weights="random")
    assert FeatureStore("out.h5").paths() == ["pictures/red.png"]
    failures = FeatureStore("out.h5").failures()
    assert [failure.path for failure in failures] == [r"a\x00b.png", r"\ud800/c.png"]
    assert all("has a name that a store cannot hold" in failure.reason for failure in failures)


def test_times_that_a_store_cannot_hold_cost_their_rows_only(desk: Path) -> None:
    os.utime("pictures/red.png", ns=(0, 1 << 63))
    summary = import_features("old.npy", "out.h5", weights="random")
    assert (summary.new, summary.failed) == (2, 1)
    assert verify("out.h5").findings == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_from_parquet_keep_their_dtype(tmp_path: Path, dtype: str) -> None:
    path = store(tmp_path / "out.h5", [("1.jpg", 1, 1), ("2.jpg", 1, 3)], dtype=dtype)
    export(path, tmp_path / "rows.parquet")
    import_features(tmp_path / "rows.parquet", tmp_path / "again.h5", root=tmp_path)
    again = FeatureStore(tmp_path / "again.h5")
    assert again.dtype == dtype and np.array_equal(again.block(0, 9), FeatureStore(path).block(0, 9))
    import_features(tmp_path / "rows.parquet", path, root=tmp_path)
