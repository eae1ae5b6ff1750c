"""List and read objects in remote storage: the one place that knows fsspec.

In: a URL. Out: the objects below it in a stream, what is known of one without
reading it, or its bytes. Credentials are found as fsspec and its file systems
find them; none is ever part of a URL here, nor of a message. Connections are
made where they are used: nothing here travels from one process to another.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from io import SEEK_SET, RawIOBase
from typing import Any, BinaryIO, TypeVar, cast

from rn50feat.errors import SourceError, VanishedError

T = TypeVar("T")

# scheme -> the package that fsspec needs for it
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
}
_ALIASES = {"gcs": "gs", "abfs": "az", "abfss": "az"}
_URL = re.compile(rf"({'|'.join(PACKAGES)})://[^/]", re.IGNORECASE)
_OTHER = re.compile(r"/[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # in a path, where two slashes are one
_SECRET = re.compile(  # a password, a name for a web server, a signature; abfs://container@account/ is none
    r"://[^/]*:[^/]*@|^https?://[^/]*@|[?&][^=&]*(?:sig|token|key|secret|passw|credential|auth|expires)[^=&]*=",
    re.IGNORECASE,
)
_TELLTALE = re.compile(r"(?<=://)[^/\s@]+@|\?[^\s'\"]+|\b(?:AKIA|ASIA)[A-Z0-9]{12,}")
_PAGE = re.compile(r"^https?://[^/]+/(?:.*/)?[^/]*\.\w+$", re.IGNORECASE)  # a file, by its suffix
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "Last-Modified")
_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5")
_NO_PARTS = re.compile(r"support range requests|streaming HTTP file")  # as fsspec says it
# Botocore's own patience with a throttling server comes on top of s3fs's five attempts.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"max_concurrency": 1, "config_kwargs": {"retries": {"mode": "standard", "max_attempts": 3}}}
}
_PATIENT = ("s3", "gs", "gcs", "az", "abfs", "abfss")  # file systems that try again by themselves
_WAITS = (0.5, 1.0, 2.0)  # seconds before another attempt with the others
_BLOCK = 1 << 20  # bytes that are read at once of an archive


@dataclass(frozen=True)
class Item:
    """An object: its URL, its size in bytes, and its time.

    ``mtime_ns`` has the second of its last change; the nanoseconds in it are
    a hash of its ETag, so that it tells two versions of one second apart.
    """

    url: str
    size: int
    mtime_ns: int


def is_url(location: str) -> bool:
    """Tell whether a location is a URL of a kind that is read here."""
    return _URL.match(location) is not None


def one_scheme(url: str) -> str:
    """Return a URL under the one name of its scheme, where it has two."""
    scheme, _, rest = url.partition("://")
    return f"{_ALIASES.get(scheme, scheme)}://{rest}"


def other_scheme(location: str) -> str:
    """Return what to tell of a location that was the URL of another kind before it was taken for a path."""
    return f" (of URLs, {', '.join(PACKAGES)} are read)" if _OTHER.search(location) else ""


def checked(url: str) -> str:
    """Return the one form of a URL; raise `SourceError` when it carries credentials, or cannot be opened here."""
    if _SECRET.search(url):
        raise SourceError(
            f"{_without_secrets(url)} has credentials in its URL, which would be written into the store:"
            " leave them out, and give them as fsspec's file systems take them, in a variable or file"
        )
    scheme, _, rest = url.partition("://")
    _file_system(scheme.lower())
    return f"{scheme.lower()}://{rest.rstrip('/')}"


@lru_cache(None)
def _file_system(scheme: str) -> Any:
    package = PACKAGES[scheme]
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(scheme, {}))
    except ImportError as error:
        extra = "pip install 'rn50feat[remote]'" if package in ("s3fs", "aiohttp") else f"pip install {package}"
        raise SourceError(f"{scheme}:// needs the package {package}: {extra}") from error


def _opened(url: str) -> tuple[Any, str, str]:
    """Return the file system of a URL, its path there, and its scheme."""
    scheme = url.partition("://")[0]
    system = _file_system(scheme)
    return system, system._strip_protocol(url), scheme


def items(url: str) -> Iterator[Item]:
    """Yield the objects below a URL, or the one at it, a page or a folder in memory at a time.

    Raises `SourceError` when they cannot be listed to the end, or there are none.
    """
    system, path, scheme = _opened(url)
    found = False
    pages = _bucket(system, path) if scheme == "s3" else _tree(system, path, scheme)
    with _told("cannot be listed"):
        for name, facts in pages:
            found = True
            address = name if "://" in name else f"{scheme}://{name}"
            if facts.get("size") is None:
                facts = _patiently(scheme, partial(system.info, name))
            yield _item(address, facts)
        if not found:
            yield _item(url, _patiently(scheme, lambda: system.info(path)))


def _bucket(system: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the names and facts of all objects below a folder of a bucket, one request for a thousand."""
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
    """Yield the names and facts of all files below a folder."""
    if _PAGE.search(path):  # to ask a web server for what is below a file would fetch the file
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


def item(url: str) -> Item:
    """Return what is known of an object, without reading it; raise `VanishedError` or `SourceError`."""
    system, path, scheme = _opened(url)
    with _told("cannot be read"):
        facts = _patiently(scheme, lambda: system.info(path))
        if facts.get("type") == "directory":
            raise VanishedError("is no object")
        return _item(url, facts)


def read(url: str, length: int | None = None) -> bytes:
    """Return the bytes of an object, or its first `length` ones."""
    system, path, scheme = _opened(url)
    part = {} if length is None else {"start": 0, "end": length}
    with _told("cannot be read"):
        return cast(bytes, _patiently(scheme, lambda: system.cat_file(path, **part)))


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """Open an object to read parts of it."""
    system, path, _ = _opened(url)
    with _told("cannot be read"), system.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as file:
        yield cast(BinaryIO, _Parts(file))


class _Parts(RawIOBase):
    """A file that tells of its server's failures as `SourceError`s: a `ValueError` is taken for a damaged archive."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _told("cannot be read"):
            return cast(bytes, self._file.read(size))

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        with _told("cannot be read"):
            return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())


def _item(url: str, facts: Any) -> Item:
    when = next((facts[name] for name in _TIMES if facts.get(name)), None)
    tag = next((str(facts[name]) for name in _TAGS if facts.get(name)), "")
    fraction = int.from_bytes(hashlib.blake2b(tag.strip('"').encode()).digest()[:8], "big") % 10**9 if tag else 0
    return Item(url, int(facts.get("size") or 0), _seconds(when) * 10**9 + fraction)


def _seconds(when: Any) -> int:
    """Return whole seconds since 1970, from any form in which file systems tell a time."""
    if isinstance(when, str):
        when = parsedate_to_datetime(when) if "," in when else datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    return int(when or 0)


def _patiently(scheme: str, call: Callable[[], T]) -> T:
    """Call, again after a while where that may help and the file system does not do it by itself."""
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
def _told(what: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `SourceError` that says why, without credentials."""
    try:
        yield
    except (SourceError, MemoryError):
        raise
    except Exception as error:  # fsspec's file systems raise what the libraries below them raise
        if _absent(error):
            raise VanishedError("cannot be found: there is no such object") from error
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        reason = _without_secrets(" ".join(str(cause).split()))[:300] or type(cause).__name__
        if _NO_PARTS.search(reason):
            reason = "its server gives no parts of files: fetch the archive and name the copy"
        if "locate credentials" in reason:
            reason += ": set AWS_PROFILE or the like, or FSSPEC_S3_ANON=true for a public bucket"
        raise SourceError(f"{what}: {reason}") from error


def _absent(error: Exception) -> bool:
    """Tell whether an error says that there surely is no such object: fsspec's HTTP says so of a dead server, too."""
    http = type(error.__cause__).__module__.startswith("aiohttp")
    surely = not http or getattr(error.__cause__, "status", None) in (404, 410)
    return isinstance(error, (FileNotFoundError, NotADirectoryError)) and surely


def _without_secrets(text: str) -> str:
    return _TELLTALE.sub("…", text)
