"""API keys and admin keys, from settings and from files that are read again when they change.

The SHA-256 of a key is compared with that of every valid key, in constant time. Keys are never logged, and no
message holds one. This module knows nothing of HTTP and of who needs a key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from artifact.errors import ResiduumError
from engines.settings import SettingsError, flag_of
from service.settings import Settings

logger = logging.getLogger("residuum")

Kind = Literal["api", "admin"]

LOOK_S = 1.0  # how often a file is looked at, at most
MAX_FILE_BYTES = 2**16  # more is some other file, named by mistake

_KEY = re.compile(rb"[!-~]+")  # what every client can send in a header


class UnusableKeys(ResiduumError):
    """A list of keys cannot be used; the message says why and holds no key."""


class Keys:
    """All keys that are valid now.

    Raises:
        SettingsError: a key cannot be sent in a header, or a file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._given: dict[Kind, tuple[bytes, ...]] = {}
        self._files: dict[Kind, KeyFile] = {}
        given: dict[Kind, tuple[Iterable[str], Path | None]] = {
            "api": ((key.get_secret_value() for key in settings.api_key), settings.api_key_file),
            "admin": ((key.get_secret_value() for key in settings.admin_key), settings.admin_key_file),
        }
        for kind, (keys, path) in given.items():
            try:
                self._given[kind] = digests_of(key.encode(errors="surrogateescape") for key in keys)
            except UnusableKeys as error:
                raise SettingsError(f"{flag_of(f'{kind}_key')}: {error}") from error
            if path is not None:
                self._files[kind] = KeyFile(path, flag_of(f"{kind}_key_file"))

    def any_of(self, kind: Kind) -> bool:
        """Return whether there is a key of that kind; a file always has one."""
        return bool(self._given[kind]) or kind in self._files

    def kind_of(self, digest: bytes) -> Kind | None:
        """Return the kind of the key with this digest; an admin key is also good as an API key."""
        is_admin = _is_among(digest, self._digests("admin"))
        is_api = _is_among(digest, self._digests("api"))
        if is_admin:
            return "admin"
        return "api" if is_api else None

    def _digests(self, kind: Kind) -> tuple[bytes, ...]:
        file = self._files.get(kind)
        return self._given[kind] + file.digests() if file else self._given[kind]


class KeyFile:
    """The keys in a file, one per line.

    The file is read again when it has changed. If it has vanished or cannot be used, the keys read before
    stay valid, and the log says so once.

    Raises:
        SettingsError: the file cannot be used at the start.
    """

    def __init__(self, path: Path, flag: str) -> None:
        self._path = path
        self._complaint = ""
        self._next_look = time.monotonic() + LOOK_S
        try:
            self._seen = _identity(path)
            self._digests = _read(path)
        except (OSError, UnusableKeys) as error:
            raise SettingsError(f"{flag} {path}: {_why(error)}") from error

    def digests(self) -> tuple[bytes, ...]:
        """Return the digests of the keys that are valid now."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._look()
        return self._digests

    def _look(self) -> None:
        try:
            # Taken before the file is read, so that a change in between is seen at the next look.
            identity = _identity(self._path)
            if identity == self._seen and not self._complaint:
                return
            digests = _read(self._path)
        except (OSError, UnusableKeys) as error:
            complaint = _why(error)
            if complaint != self._complaint:
                logger.warning("%s: %s; the keys read before stay valid", self._path, complaint)
            self._complaint = complaint
        else:
            self._seen, self._digests, self._complaint = identity, digests, ""
            logger.info("%s: read again, %d valid", self._path, len(digests))


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def digests_of(keys: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the digests of keys, without repeats; raise UnusableKeys for a key that no header can hold."""
    digests: dict[bytes, None] = {}
    for number, key in enumerate(keys, start=1):
        if not _KEY.fullmatch(key):
            raise UnusableKeys(f"number {number} is no key: visible ASCII characters without spaces")
        digests[digest_of(key)] = None
    return tuple(digests)


def _is_among(digest: bytes, digests: tuple[bytes, ...]) -> bool:
    """Compare with all digests, so that the duration does not reveal a match."""
    found = False
    for other in digests:
        found |= hmac.compare_digest(digest, other)
    return found


def _read(path: Path) -> tuple[bytes, ...]:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise UnusableKeys(f"more than {MAX_FILE_BYTES:,} bytes: this is no file of keys")
    lines = (line.strip() for line in content.splitlines())
    digests = digests_of(line for line in lines if line)
    if not digests:
        raise UnusableKeys("there is no key in it")
    return digests


def _identity(path: Path) -> tuple[int, int, int]:
    """Return what differs when a file has changed; raise UnusableKeys unless it is a regular file.

    Reading anything else may block, or give nothing the second time.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise UnusableKeys("this is no regular file")
    return about.st_mtime_ns, about.st_size, about.st_ino


def _why(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
