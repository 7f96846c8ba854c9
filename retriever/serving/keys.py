"""Keys and their roles: a file of salted hashes, from which no key can be had back."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import secrets
import threading
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retriever.errors import ConfigError
from retriever.files import lock, mark_of, write_atomic
from retriever.serving.cache import RecentValues

Role = Literal["search", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

COST, BLOCK, LANES = 2**14, 8, 1
"""Of scrypt (RFC 7914): 16 MiB and some 50 milliseconds for a key that is new to a process."""

_REMEMBERED = 1_024
"""Right keys that a process has checked and need not check again, and as many wrong ones."""


class _Record(BaseModel):
    """A key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    role: Role
    made: str
    salt: str
    hash: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[_Record] = []


class Principal(BaseModel):
    """Who asks: the id of the key, which is no secret, and what it may do."""

    model_config = ConfigDict(frozen=True)

    key_id: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this is enough for what needs `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


def new_key(path: Path, role: str) -> str:
    """Adds a key to the file, which is made if need be, and gives the key: it is nowhere else.

    Raises:
        ConfigError: there is no such role, or the file is no file of keys.
    """
    if role not in ROLES:
        raise ConfigError(f"--new-key {role}: there is no such role; allowed are {', '.join(ROLES)}")
    key_id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_bytes(16)
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = _Record(id=key_id, role=role, made=made, salt=_text(salt), hash=_text(_hashed(secret, salt)))
    with lock(path.with_name(f".{path.name}.lock"), "changing keys"):
        held = _read(path) if path.exists() else _File()
        held.keys.append(record)
        write_atomic(path, lambda temporary: _write_private(temporary, held.model_dump_json(indent=2) + "\n"))
    return f"rk_{key_id}_{secret}"


class Keys:
    """The keys of a file, which is read again when it changes: a line taken out of it is a key that no longer works."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            ConfigError: it is missing, damaged, or holds no key.
        """
        self.path = path
        self._lock = threading.Lock()  # of the file and of what is remembered of it: never held for long, as the event loop waits for it
        self._hashing = threading.Lock()  # one at a time: each takes 16 MiB
        self._right: RecentValues[Principal] = RecentValues(_REMEMBERED)  # each of size 1
        self._wrong: RecentValues[bool] = RecentValues(_REMEMBERED)  # apart, so that guessing makes no right key be checked again
        self._mark, self._records = self._loaded()
        if not self._records:
            raise ConfigError(f"{path}: holds no key. Make one with: retriever serve --new-key admin --keys {path}")

    def remembered(self, key: str) -> tuple[bool, Principal | None]:
        """Whether the key was checked before, and whose it is; takes no time."""
        digest = hashlib.sha256(key.encode()).digest()
        with self._lock:
            self._reload()
            found = self._right.get(digest)
            return found is not None or self._wrong.get(digest) is not None, found

    def check(self, key: str) -> Principal | None:
        """Whose key it is; None for one that is not in the file. Takes some 50 milliseconds the first time."""
        prefix, _, rest = key.partition("_")
        key_id, _, secret = rest.partition("_")
        with self._hashing:
            with self._lock:
                self._reload()
                mark, record = self._mark, self._records.get(key_id) if prefix == "rk" else None
            wanted, salt = (base64.b64decode(record.hash), base64.b64decode(record.salt)) if record else (bytes(32), bytes(16))
            right = hmac.compare_digest(_hashed(secret, salt), wanted)  # an unknown id takes as long as a wrong secret
        found = Principal(key_id=record.id, role=record.role) if record and right else None
        self._remember(key, found, mark)
        return found

    def _remember(self, key: str, found: Principal | None, mark: tuple[int, int, int]) -> None:
        """Keeps what a key turned out to be, unless the file was changed while it was checked."""
        digest = hashlib.sha256(key.encode()).digest()
        with self._lock:
            self._reload()
            if mark != self._mark:
                return
            if found is None:
                self._wrong.put(digest, True, 1)
            else:
                self._right.put(digest, found, 1)

    def _reload(self) -> None:
        try:
            if mark_of(self.path) == self._mark:
                return
            self._mark, self._records = self._loaded()
        except (ConfigError, OSError):
            self._records = {}  # a file that cannot be read lets nobody in
            self._mark = (0, 0, 0)
        self._right.clear()
        self._wrong.clear()

    def _loaded(self) -> tuple[tuple[int, int, int], dict[str, _Record]]:
        if not self.path.is_file():
            raise ConfigError(f"{self.path}: there is no file of keys. Make one with: retriever serve --new-key admin --keys {self.path}")
        mark = mark_of(self.path)
        return mark, {record.id: record for record in _read(self.path).keys}


def _read(path: Path) -> _File:
    try:
        return _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: is no file of keys ({error.errors()[0]['msg']}). Name another one") from error


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)


def _hashed(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=COST, r=BLOCK, p=LANES, maxmem=64 << 20, dklen=32)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
