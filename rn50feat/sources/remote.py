"""Find and read objects in remote storage: the only module that knows fsspec.

In: a URL. Out: the objects below it in a stream, what is known of one of them,
and its bytes. fsspec's file systems find credentials their own way; none is
ever part of a URL here, or of a message. Connections are made where they are
used: none travels from one process to another.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from io import SEEK_SET, RawIOBase
from typing import Any, BinaryIO, TypeVar, cast

from rn50feat.errors import SourceError, VanishedError
from rn50feat.sources.reference import Reference
from rn50feat.sources.urls import PACKAGES, checked, without_secrets

T = TypeVar("T")

_PAGE = re.compile(r"^https?://[^/]+/(?:.*/)?[^/]*\.\w+$", re.IGNORECASE)  # a file, by its suffix
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "Last-Modified")
_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5")
_NO_PARTS = re.compile(r"support range requests|streaming HTTP file")  # fsspec's words
# Botocore's own patience with a throttling server comes on top of s3fs's five attempts.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"max_concurrency": 1, "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 3}}}
}
_PATIENT = ("s3", "gs", "gcs", "az", "abfs", "abfss")  # file systems that retry by themselves
_WAITS = (0.5, 1.0, 2.0)  # seconds before another attempt with the others
_BLOCK = 1 << 20  # bytes that are read at once of an archive


@lru_cache(None)
def _file_system(scheme: str) -> Any:
    package = PACKAGES[scheme]
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(scheme, {}))
    except ImportError as error:
        extra = "pip install 'rn50feat[remote]'" if package in ("s3fs", "aiohttp") else f"pip install {package}"
        raise SourceError(f"{scheme}:// needs the package {package}: {extra}") from error


@dataclass(slots=True, unsafe_hash=True)
class Remote:
    """An object in remote storage, or a folder of objects, by its URL; one from a listing has its reference.

    A reference's ``mtime_ns`` has the second of the object's last change; its
    nanoseconds are a hash of the ETag, which tells two versions of one second apart.
    """

    path: str
    listed: Reference | None = field(default=None, compare=False)

    @classmethod
    def of(cls, url: str) -> Remote:
        """Return the place of a URL that a user names; raise `SourceError` when it cannot be used."""
        remote = cls(checked(url))
        remote._system()
        return remote

    @property
    def needs_network(self) -> bool:
        """True: every look at it is a request to another machine."""
        return True

    def walk(self) -> Iterator[Remote]:
        """Yield the objects below the URL, or the one at it, with one page or folder in memory at a time.

        Raises `SourceError`, with the URL, when they cannot be listed to the end or there are none.
        """
        found = False
        try:
            system, path, scheme = self._system()
            pages = _bucket(system, path) if scheme == "s3" else _tree(system, path, scheme)
            with _translated("cannot be listed"):
                for name, facts in pages:
                    found = True
                    url = name if "://" in name else f"{scheme}://{name}"
                    if facts.get("size") is None:
                        facts = _patiently(scheme, partial(system.info, name))
                    yield Remote(url, _reference(url, facts))
                if not found:
                    facts = _patiently(scheme, lambda: system.info(path))
                    yield Remote(self.path, _reference(self.path, facts))
        except SourceError as error:
            raise type(error)(f"{self.path} {error}") from error

    def stat(self) -> Reference:
        """Look up the object's size and time, unless a listing gave them; raise `SourceError` with the reason."""
        return self.listed or self._now()

    def _now(self) -> Reference:
        system, path, scheme = self._system()
        with _translated("cannot be read"):
            facts = _patiently(scheme, lambda: system.info(path))
            if facts.get("type") == "directory":
                raise VanishedError("is not an object")
            return _reference(self.path, facts)

    def exists(self) -> bool:
        """Check whether there is an object; a server that does not answer proves nothing, and counts as yes."""
        try:
            self.stat()
        except VanishedError:
            return False
        except SourceError:
            return True
        return True

    @contextmanager
    def open(self, known: Reference, block: int) -> Iterator[tuple[Reference, Iterator[bytes]]]:
        """Yield the object's reference and its bytes, fetched at once when asked for; see `Location.open`.

        Whoever reads an object whole (`block` -1) trusts what a listing said of it, which saves a request.
        """
        now = known if block < 0 and known.mtime_ns > 0 else self._now()
        yield now, (self._fetch() for _ in range(1))

    def head(self, known: Reference, length: int) -> bytes:
        """Read the first `length` bytes, in one request; S3 refuses one for a part of an empty object."""
        return self._fetch(start=0, end=length) if known.size else b""

    @contextmanager
    def parts(self) -> Iterator[tuple[BinaryIO, Reference]]:
        """Open the object to read parts of it; yield it with its reference as of now."""
        now = self._now()
        system, path, _ = self._system()
        with _translated("cannot be read"), system.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as file:
            yield cast(BinaryIO, _Parts(file)), now

    def _fetch(self, **part: int) -> bytes:
        system, path, scheme = self._system()
        with _translated("cannot be read"):
            return cast(bytes, _patiently(scheme, lambda: system.cat_file(path, **part)))

    def _system(self) -> tuple[Any, str, str]:
        """Return the file system of the URL, its path there, and its scheme."""
        scheme = self.path.partition("://")[0]
        system = _file_system(scheme)
        return system, system._strip_protocol(self.path), scheme


def _bucket(system: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and facts of every object below a folder of a bucket: one request per thousand."""
    bucket, _, prefix = path.partition("/")
    more: dict[str, str] = {}
    while True:
        page = system.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **more)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # an empty object that stands for a folder
                yield f"{bucket}/{entry['Key']}", {**entry, "size": entry["Size"]}
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _tree(system: Any, path: str, scheme: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and facts of every file below a folder."""
    if _PAGE.search(path):  # asking a web server what lies below a file would fetch the file
        return
    folder = path.rstrip("/")
    try:
        entries = _patiently(scheme, lambda: system.ls(f"{folder}/" if "://" in folder else folder, detail=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        if _absent(error):
            return
        raise
    for entry in sorted(entries, key=lambda entry: str(entry["name"])):
        name = str(entry["name"])
        if not name.startswith(f"{folder}/") or "?" in name:  # the folder itself; a link that sorts an index
            continue
        if entry["type"] == "directory":
            yield from _tree(system, name, scheme)
        else:
            yield name, entry


class _Parts(RawIOBase):
    """A file whose server's failures are `SourceError`s: a `ValueError` would be taken for a damaged archive."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _translated("cannot be read"):
            return cast(bytes, self._file.read(size))

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        with _translated("cannot be read"):
            return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())


def _reference(url: str, facts: Any) -> Reference:
    when = next((facts[name] for name in _TIMES if facts.get(name)), None)
    tag = next((str(facts[name]) for name in _TAGS if facts.get(name)), "")
    fraction = int.from_bytes(hashlib.blake2b(tag.strip('"').encode()).digest()[:8], "big") % 10**9 if tag else 0
    return Reference(url, int(facts.get("size") or 0), _seconds(when) * 10**9 + fraction)


def _seconds(when: Any) -> int:
    """Convert any form in which file systems give a time to whole seconds since 1970."""
    if isinstance(when, str):
        when = parsedate_to_datetime(when) if "," in when else datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    return int(when or 0)


def _patiently(scheme: str, call: Callable[[], T]) -> T:
    """Call, and try again after a while where that may help and the file system does not do so itself."""
    for wait in () if scheme in _PATIENT else _WAITS:
        try:
            return call()
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # as in `_told`
            if _absent(error):
                raise
            time.sleep(wait)
    return call()


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `SourceError` that says why, without credentials."""
    try:
        yield
    except (SourceError, MemoryError):
        raise
    except Exception as error:  # fsspec's file systems raise what the libraries below them raise
        if _absent(error):
            raise VanishedError("cannot be found: there is no such object") from error
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        reason = without_secrets(" ".join(str(cause).split()))[:300] or type(cause).__name__
        if _NO_PARTS.search(reason):
            reason = "its server cannot send parts of files: download the archive and name the copy"
        if "locate credentials" in reason:
            reason += ": set AWS_PROFILE or the like, or FSSPEC_S3_ANON=true for a public bucket"
        raise SourceError(f"{what}: {reason}") from error


def _absent(error: Exception) -> bool:
    """Check whether an error means that there surely is no such object: fsspec's HTTP says so of a dead server, too."""
    http = type(error.__cause__).__module__.startswith("aiohttp")
    surely = not http or getattr(error.__cause__, "status", None) in (404, 410)
    return isinstance(error, (FileNotFoundError, NotADirectoryError)) and surely
