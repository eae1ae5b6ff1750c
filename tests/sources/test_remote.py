"""remote: objects behave as files do; on moto's S3 server, behind a proxy that throttles, cuts and counts."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import fsspec  # noqa: F401  # its registry
import pytest
from conftest import Run, rows
from fake import FakeBackend, FakeStart
from moto.s3.models import s3_backends
from packing import packed, packed_folder, zipped
from PIL import Image
from remotes import KEY, Proxy, client, pages, put, serving
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.engines.local import BUFFERS, LocalEngine
from rn50feat.engines.pool import DecoderPool
from rn50feat.errors import PruneError, QueryError, SourceError, VanishedError
from rn50feat.extraction.preview import preview
from rn50feat.images.provenance import Preprocessing
from rn50feat.sources import contents, remote, urls
from rn50feat.sources.archive import Archive
from rn50feat.sources.location import at
from rn50feat.sources.reference import Reference
from rn50feat.sources.remote import Remote
from rn50feat.sources.roots import roots
from rn50feat.sources.selection import Selection
from rn50feat.store.summary import Summary

pytestmark = pytest.mark.network


@pytest.fixture
def bucket(proxy: Proxy, pictures: Path) -> Proxy:
    """A bucket with the five plain pictures below ``photos``, and what is no picture."""
    for path in pictures.rglob("*.png"):
        put(proxy, **{f"photos/{path.relative_to(pictures)}": path.read_bytes()})
    put(proxy, **{"photos/notes.txt": b"notes", "photosynthesis.png": b"elsewhere", "photos/sub/": b""})
    return proxy


def extract(start: FakeStart, out: Path, *pictures: str, **settings: object) -> Summary:
    return rn50feat.extract(pictures or ["s3://bucket/photos"], out, start=start, **{"weights": "random", **settings})


def test_rows_of_objects_are_those_of_their_files(
    bucket: Proxy, pictures: Path, tmp_path: Path, start: FakeStart
) -> None:
    summary = extract(start, tmp_path / "out.h5")
    assert (summary.new, summary.ignored) == (5, 1)
    extract(start, tmp_path / "local.h5", str(pictures))
    local = {path.replace("pictures/", "s3://bucket/photos/"): row for path, row in rows(tmp_path / "local.h5").items()}
    stored = rows(tmp_path / "out.h5")
    assert list(stored) == list(local)
    assert all((stored[path] == local[path]).all() for path in stored)
    store, digests = FeatureStore(tmp_path / "out.h5"), FeatureStore(tmp_path / "local.h5").column("digest")
    assert (store.column("digest") == digests).all()
    assert [reference.location for reference in store.references(0, 9)] == list(stored)


def test_a_night_in_which_nothing_changed_reads_no_object(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    extract(start, tmp_path / "out.h5")
    bucket.counts.clear()
    summary = extract(start, tmp_path / "out.h5", prune=True)
    assert (summary.unchanged, summary.ignored, summary.removed) == (5, 1, 0)
    expected = preview(["s3://bucket/photos/"], tmp_path / "out.h5")
    assert (expected.unchanged, expected.compute) == (5, 0)
    assert set(bucket.counts) == {"LIST"}


def test_objects_and_members_of_remote_archives_are_left_out(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    extract(start, tmp_path / "out.h5")
    members = [("@eaDir/x.png", b""), ("x.png", b"x")]
    put(bucket, **{"photos/@eaDir/a.png": b"", "photos/a.zip": zipped(tmp_path / "a.zip", members).read_bytes()})
    selection = Selection("s3://bucket/photos", exclude=["/sub/", "/a.zip/x.png"])
    summary = rn50feat.extract(selection, tmp_path / "out.h5", start=start, prune=True)
    assert (summary.unchanged, summary.excluded, summary.removed, summary.failed) == (3, 5, 2, 0)
    assert not [path for path in rows(tmp_path / "out.h5") if "/sub/" in path]


def test_changed_moved_and_deleted_objects(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    extract(start, tmp_path / "out.h5")
    s3 = client(bucket.port)
    red = s3.get_object(Bucket="bucket", Key="photos/red.png")["Body"].read()
    put(bucket, **{"photos/white.png": red, "photos/moved.png": red})  # of one size, and within one second
    s3.delete_object(Bucket="bucket", Key="photos/red.png")
    summary = extract(start, tmp_path / "out.h5", prune=True)
    assert (summary.unchanged, summary.reused, summary.moved, summary.removed) == (3, 2, 1, 0)
    stored = rows(tmp_path / "out.h5")
    assert stored["s3://bucket/photos/white.png"][:3].tolist() == [255, 0, 0]
    assert "s3://bucket/photos/red.png" not in stored


def test_decoding_processes_read_objects_and_members_of_remote_archives(
    bucket: Proxy, pictures: Path, tmp_path: Path
) -> None:
    for kind in ("tar", "zip"):
        put(bucket, **{f"shards/a.{kind}": packed_folder(tmp_path / f"a.{kind}", pictures).read_bytes()})
    listed = list(Selection("s3://bucket/photos").references())
    for file in Remote("s3://bucket/shards").walk():
        listed += Archive(file, file.stat()).members()
    listed = [reference for reference in listed if reference.location.endswith(".png")]
    assert len(listed) == 15
    pool = DecoderPool(Preprocessing(), slots=BUFFERS * 3, workers=2, max_pixels=10**7)
    with LocalEngine(FakeBackend(), pool, 3) as engine:
        batches = list(engine.embed(listed))
    assert [failure.reason for batch in batches for failure in batch.failures] == []
    features = [row[:3].tolist() for batch in batches for row in batch.features]
    assert features[:5] == features[5:10] == features[10:]
    assert [r for batch in batches for r in batch.references] == [contents.digest(r) for r in listed]


def test_a_remote_archive_that_has_not_changed_is_not_read(
    bucket: Proxy, pictures: Path, tmp_path: Path, start: FakeStart
) -> None:
    for shard in range(2):
        put(bucket, **{f"s-{shard:02}.tar": packed_folder(tmp_path / "a.tar", pictures).read_bytes()})
    assert extract(start, tmp_path / "out.h5", "s3://bucket/s-{00..01}.tar").new == 10
    assert FeatureStore(tmp_path / "out.h5").paths()[-1] == "s3://bucket/s-01.tar::z.png"
    bucket.counts.clear()
    assert extract(start, tmp_path / "out.h5", "s3://bucket/s-{00..01}.tar", prune=True).unchanged == 10
    assert bucket.counts["GET"] == 0
    assert rn50feat.verify(tmp_path / "out.h5", sources=True).findings == []


def test_a_member_of_a_remote_archive_is_a_source(
    bucket: Proxy, pictures: Path, tmp_path: Path, start: FakeStart
) -> None:
    put(bucket, **{"a.tar": packed_folder(tmp_path / "a.tar", pictures).read_bytes()})
    assert extract(start, tmp_path / "out.h5", "s3://bucket/a.tar::sub/blue.png").new == 1
    assert FeatureStore(tmp_path / "out.h5").paths() == ["s3://bucket/a.tar::sub/blue.png"]
    with pytest.raises(SourceError, match=r"s3://bucket/a.tar::none.png has vanished from its archive"):
        extract(start, tmp_path / "out.h5", "s3://bucket/a.tar::none.png")


def test_throttling_and_cut_connections_cost_time_alone(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    bucket.throttled.update(LIST=1, GET=2, HEAD=1)
    bucket.cut.update(GET=2, LIST=1)
    summary = extract(start, tmp_path / "out.h5")
    assert (summary.new, summary.failed) == (5, 0)
    assert rn50feat.verify(tmp_path / "out.h5", sources=True).notes == [
        "5 files hashed: 0 gone, 0 changed since their rows were made"
    ]


def test_objects_that_cannot_be_read_are_tried_again(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    bucket.refused.add("GET")
    summary = extract(start, tmp_path / "out.h5", "s3://bucket/photos/red.png", "s3://bucket/photos/sub")
    assert (summary.new, summary.failed) == (0, 3)
    (reason, *_) = (failure.reason for failure in FeatureStore(tmp_path / "out.h5").failures())
    assert reason.startswith("cannot be read: ")
    bucket.refused.clear()
    assert extract(start, tmp_path / "out.h5").new == 5
    assert FeatureStore(tmp_path / "out.h5").failures() == []


def test_thousands_of_objects_are_listed_in_pages(bucket: Proxy) -> None:
    for i in range(2500):  # straight into the server, which takes 10 ms for a request
        s3_backends["123456789012"]["aws"].put_object("bucket", f"many/{i % 3}/{i:05} ü+&.png", b"")
    bucket.counts.clear()
    bucket.throttled.update(LIST=1)
    listed = [place.path for place in at("s3://bucket/many").walk()]
    assert listed == sorted(f"s3://bucket/many/{i % 3}/{i:05} ü+&.png" for i in range(2500))
    assert bucket.counts == {"LIST": 4}


def test_a_listing_takes_no_more_memory_for_ten_times_as_many_objects(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from rn50feat.sources.location import at\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = at('s3://b/folder').walk()\n"
        "for _ in range(2000): next(found)\n"
        "before = peak(); count = 2000 + sum(1 for _ in found); print(count, peak() - before)\n"
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), pages(30_000))
    with serving(server):
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, encoding="utf-8", check=True
        )
    count, grown = map(int, done.stdout.split())
    assert count == 30_000
    assert grown < 20_000  # kilobytes


def test_a_listing_that_fails_is_an_error_and_prunes_nothing(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    extract(start, tmp_path / "out.h5")
    bucket.refused.add("LIST")
    with pytest.raises(SourceError, match="^s3://bucket/photos cannot be listed: "):
        extract(start, tmp_path / "out.h5", prune=True, force=True)
    assert len(FeatureStore(tmp_path / "out.h5")) == 5


def test_an_empty_place_prunes_nothing(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    extract(start, tmp_path / "out.h5")
    boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{bucket.port}").Bucket("bucket").objects.all().delete()
    with pytest.raises((SourceError, PruneError), match="s3://bucket/photos cannot be found: there is no such object"):
        extract(start, tmp_path / "out.h5", prune=True)
    for url in ("s3://bucket/nothing.png", "s3://nowhere/photos"):
        with pytest.raises(SourceError, match=f"^{url} cannot be found"):
            extract(start, tmp_path / "out.h5", url)


def test_an_object_is_a_query_and_recomputed(bucket: Proxy, tmp_path: Path, start: FakeStart) -> None:
    extract(start, tmp_path / "out.h5")
    (result,) = rn50feat.search("s3://bucket/photos/z.png", tmp_path / "out.h5", k=1, metric="l2", start=start)
    assert result.hits[0].location == "s3://bucket/photos/z.png"
    with pytest.raises(QueryError, match="s3://bucket/photos/none.png cannot be found"):
        rn50feat.search("s3://bucket/photos/none.png", tmp_path / "out.h5", start=start)
    report = rn50feat.verify(tmp_path / "out.h5", sources=True, recompute=5, start=start)
    assert report.findings == []
    put(bucket, **{"photos/red.png": encoded(Image.new("RGB", (9, 9), "red"), "PNG")})
    client(bucket.port).delete_object(Bucket="bucket", Key="photos/z.png")
    assert rn50feat.verify(tmp_path / "out.h5", sources=True).notes == [
        "5 files hashed: 1 gone, 1 changed since their rows were made"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@example.org/a.jpg",
        "https://hunter2@example.org/a.jpg",
        "https://example.org/a.jpg?X-Amz-Signature=hunter2&x=1",
        "https://example.org/a.jpg?sv=2026&sig=hunter2",
        "s3://KEY:hunter2@bucket/photos",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str, store: FeatureStore, start: FakeStart) -> None:
    for refused in (lambda: extract(start, store.path, url), lambda: rn50feat.search(url, store, start=start)):
        with pytest.raises(SourceError, match="has credentials in its URL") as error:
            refused()
        assert "hunter2" not in str(error.value)


def test_errors_name_no_credentials(bucket: Proxy, rn50feat: Run) -> None:
    bucket.refused.add("LIST")
    done = rn50feat("extract", "s3://bucket/photos", "out.h5", "--weights", "random")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("Error: s3://bucket/photos cannot be listed: ")
    assert KEY not in done.stderr
    assert "hunter2" not in done.stderr


def test_names_of_azure_containers_are_no_credentials() -> None:
    assert urls._SECRET.search("abfs://container@account.dfs.core.windows.net/photos") is None


@pytest.mark.parametrize(
    ("scheme", "package", "remedy"),
    [("gs", "gcsfs", "pip install gcsfs"), ("s3", "s3fs", "pip install 'rn50feat\\[remote\\]'")],
)
def test_a_package_that_is_missing_is_named(
    scheme: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    remote._file_system.cache_clear()
    with pytest.raises(SourceError, match=f"{scheme}:// needs the package {package}: {remedy}"):
        roots([f"{scheme}://bucket/photos"])
    remote._file_system.cache_clear()


def test_files_of_a_web_server(
    pictures: Path, tmp_path: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (pictures / "with space.png").write_bytes((pictures / "red.png").read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=pictures))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with serving(server):
        assert extract(start, tmp_path / "out.h5", url).new == 6
        assert extract(start, tmp_path / "out.h5", url).unchanged == 6
        assert contents.read(at(f"{url}/sub/blue.png").stat())[1] == (pictures / "sub/blue.png").read_bytes()
        with pytest.raises(VanishedError):
            contents.read(Reference(f"{url}/none.png", -1, -1))
        assert extract(start, tmp_path / "one.h5", f"{url}/red.png").new == 1
        with monkeypatch.context() as patch:
            patch.setattr(Quiet, "do_GET", None)
            assert extract(start, tmp_path / "one.h5", f"{url}/red.png").unchanged == 1
        assert not at(f"{url}/none.png").exists()
    assert at(f"{url}/red.png").exists()  # nobody answers


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_web_server_that_gives_no_parts_of_files_is_told_as_that(tmp_path: Path, start: FakeStart, kind: str) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    packed(tmp_path / f"a.{kind}", [(f"{i}.png", os.urandom(3 << 20)) for i in range(2)])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    url = f"http://127.0.0.1:{server.server_address[1]}/a.{kind}"
    reason = f"^{url} cannot be read: its server cannot send parts of files: download the archive and name the copy$"
    with serving(server), pytest.raises(SourceError, match=reason):
        extract(start, tmp_path / "out.h5", url)


def test_a_local_run_imports_nothing_remote() -> None:
    program = "import sys, rn50feat.extraction.extract, rn50feat.searching.search; print('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8").stdout == "False\n"
