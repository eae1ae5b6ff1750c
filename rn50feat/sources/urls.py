"""Recognise the URLs that are read here, and keep credentials out of them.

In: text from a user, a list or a store. Out: whether it is such a URL, and its
normal form.
"""

from __future__ import annotations

import re

from rn50feat.errors import SourceError

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


def is_url(location: str) -> bool:
    """Check whether a location is a URL of a scheme that is read here."""
    return _URL.match(location) is not None


def one_scheme(url: str) -> str:
    """Spell a URL with the main name of its scheme, where that has two."""
    scheme, _, rest = url.partition("://")
    return f"{_ALIASES.get(scheme, scheme)}://{rest}"


def other_scheme(location: str) -> str:
    """Explain a path that was a URL of another scheme before it was taken for a path; "" for any other."""
    return f" (of URLs, {', '.join(PACKAGES)} are read)" if _OTHER.search(location) else ""


def checked(url: str) -> str:
    """Normalise a URL; raise `SourceError` when it carries credentials."""
    if _SECRET.search(url):
        raise SourceError(
            f"{without_secrets(url)} has credentials in its URL, which would be written into the store:"
            " leave them out, and give them in an environment variable or a file, as fsspec's file systems read them"
        )
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def without_secrets(text: str) -> str:
    """Replace what may be credentials in a text."""
    return _TELLTALE.sub("…", text)
