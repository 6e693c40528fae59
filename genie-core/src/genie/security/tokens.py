"""Bearer tokens: who has one may use a node, or manage it. The node's file holds their hashes alone.

A token is 256 random bits, so a plain SHA-256 of it is as good at rest as a slow hash: there is nothing to guess.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path

import msgspec

from genie.errors import ConfigError
from genie.security.editing import edited
from genie.security.files import Watched, read_small

PREFIX = "genie_"  # so that scanners for leaked secrets can tell
_LONGEST = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


class Scope(Enum):
    USE = "use"  # sessions, and what a node is and does
    ADMIN = "admin"  # drain, and other people's sessions
    METRICS = "metrics"  # metrics and the status page, over HTTP


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token. ``expires`` is the first moment it does not hold; without, it holds until it is revoked. ``tenant``
    is whom quotas are counted for; the name, if there is none."""

    name: str
    sha256: str
    scopes: tuple[Scope, ...] = (Scope.USE,)
    expires: datetime.datetime | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self.name[:64]!r} is no name for a token", hint="letters, digits, @ . _ -; at most 64")
        if self.tenant and not _NAME.fullmatch(self.tenant):
            raise ConfigError(f"{self.tenant[:64]!r} is no name for a tenant")
        if not _HASH.fullmatch(self.sha256):
            raise ConfigError(f"token {self.name!r}: sha256 must be 64 hexadecimal digits")
        if not self.scopes or len(set(self.scopes)) != len(self.scopes):
            raise ConfigError(
                f"token {self.name!r}: scopes must name each of use, admin, metrics at most once, and one of them"
            )
        if self.expires is not None and self.expires.tzinfo is None:
            raise ConfigError(f"token {self.name!r}: expires needs a time zone, for example 2030-01-01T00:00:00Z")

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.datetime.now(datetime.UTC)


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[Entry, ...] = ()


class TokenFile:
    """The tokens a node takes, as the file says now: no restart is needed when it changes."""

    def __init__(self, path: str | Path, told: Callable[[str, str], None] | None = None) -> None:
        self._path = Path(path)
        self._watched = Watched("tokens", (self._path,), lambda: load(self._path), told)

    def entries(self) -> tuple[Entry, ...]:
        return self._watched.get()

    def find(self, token: str) -> Entry | None:
        """Whose it is, expired or not. The time taken tells nothing of which entries came close."""
        sha256 = digest(token)
        found = None
        for entry in self.entries():
            if hmac.compare_digest(entry.sha256, sha256):
                found = entry
        return found


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def load(path: Path) -> tuple[Entry, ...]:
    """Raises :class:`ConfigError` naming the file and what is wrong in it."""
    data = read_small(path, "the tokens file", hint="`genie tokens add FILE NAME` makes one")
    try:
        contents = msgspec.json.decode(data, type=_Contents)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        # What is wrong, on one line; an error of ours below arrives with its text alone.
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the tokens file is malformed: {text}", where=str(path), hint="`genie tokens add` writes it"
        ) from error
    names = [entry.name for entry in contents.tokens]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"the tokens file names {name!r} twice", where=str(path))
    return contents.tokens


def add(
    path: Path, name: str, scopes: Sequence[Scope] = (Scope.USE,), days: float | None = 90.0, tenant: str = ""
) -> str:
    """Make a token and write its hash to ``path``; the token, which nothing keeps. ``days`` of ``None``: for ever."""
    token = PREFIX + secrets.token_urlsafe(32)
    expires = None
    if days is not None:
        if not 0 < days <= 36_500:
            raise ConfigError(f"a token for {days:g} days")
        expires = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=days)
    entry = Entry(name=name, sha256=digest(token), scopes=tuple(scopes), expires=expires, tenant=tenant)
    with _edited(path) as entries:
        if any(each.name == name for each in entries):
            raise ConfigError(
                f"there is a token {name!r} already", where=str(path), hint=f"genie tokens revoke {path} {name}"
            )
        entries.append(entry)
    return token


def revoke(path: Path, name: str) -> None:
    with contextlib.suppress(OSError):  # of a path that cannot be looked at: what is wrong with it is said below
        if not path.exists():
            raise ConfigError("there is no tokens file", where=str(path))
    with _edited(path) as entries:
        kept = [entry for entry in entries if entry.name != name]
        if len(kept) == len(entries):
            known = ", ".join(entry.name for entry in entries) or "none"
            raise ConfigError(f"there is no token {name!r}", where=str(path), hint=f"tokens: {known}")
        entries[:] = kept


def _edited(path: Path) -> AbstractContextManager[list[Entry]]:
    return edited(path, "the tokens file", load, _dump)


def _dump(entries: Sequence[Entry]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_Contents(tuple(entries))), indent=2)


def read_token(path: Path) -> str:
    """A client's own token. Raises :class:`ConfigError`."""
    try:
        token = read_small(path, "the token (setting 'token_file')", 4096).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ConfigError("the token is no text", where=str(path)) from error
    if not token or len(token) > _LONGEST or any(not 0x21 <= ord(char) <= 0x7E for char in token):
        raise ConfigError(
            "there is no token in the file", where=str(path), hint="one line: what `genie tokens add` said"
        )
    return token
