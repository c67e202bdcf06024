"""API keys: who may ask the node, as the store knows it and as this process remembers it.

A key is 256 random bits behind a prefix. The store has its SHA-256 only: nobody can read a key there, and since it is
random, no slow hash is needed. All of it is one hash, so each change is one command:

    <id>        JSON: digest, name, role, created_at, expires_at; the id is the start of the digest
    used:<id>   Unix seconds, about when the key was last used
    ever        there has been a key: from then on one is needed, also when none is left
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from node.errors import NotFound, Rejected, Unavailable
from node.jobs import Role
from node.store import keys
from node.store.commit import Commit

log = structlog.get_logger()

PREFIX = "stoker_"
FRESH_S = 2.0  # what was read is believed for so long: a revoked key works no longer than this
REFRESH_S = 1.0
USED_S = 60.0  # how often the last use of a key is written down
ID_CHARS = 12
MAX_KEYS = 10_000  # each node reads all of them at every refresh

_EVER = b"ever"
_USED = "used:"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")  # no IP address is such a name
_ID = re.compile(rb"[0-9a-f]{%d}" % ID_CHARS)


class _Record(msgspec.Struct, frozen=True):
    digest: str
    name: str
    role: Role
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of an API key; the key itself is not. Times are Unix seconds; `used_at` is right to a minute.

    name: jobs are filed under it, so keys of one name see the same jobs.
    """

    id: str
    name: str
    role: Role
    created_at: float
    expires_at: float | None
    used_at: float | None

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


class Access:
    """The API keys of a store. Entering starts to keep them in memory, for `find`; the other methods need no entering.

    Every method raises `Unavailable` when it must ask the store and that does not answer.
    """

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._records: Mapping[str, _Record] = {}
        self._read_at: float | None = None
        self._ever = False
        self._mark: Path | None = None
        self._unreadable: set[str] = set()
        self._used: dict[str, float] = {}
        self._written: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._watcher = self._tasks.create_task(self._watch(), name="store-access")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        await self._tasks.__aexit__(None, None, None)

    def remember(self, mark: Path) -> None:
        """Keep it in a file as well that there has been a key: an emptied store and a restart do not undo it."""
        self._mark = mark
        self._ever = self._ever or mark.exists()

    def _latch(self) -> None:
        if not self._ever:
            self._ever = True
            try:
                if self._mark:
                    self._mark.touch()
            except OSError as error:  # the store knows it as well
                log.warning("access_mark_failed", file=str(self._mark), error=str(error))

    # What the doors ask for

    @property
    def keyless(self) -> bool:
        """Whether it is certain, without asking, that there has been no key."""
        return self._read_at is not None and not self._ever

    async def keyed(self) -> bool:
        """Whether a key is needed because there has been one. Once true, it stays so.

        Known from the last refresh, at most a second ago; only before the first one the store is asked.
        """
        if self._read_at is None and not self._ever:
            await self._read()
        return self._ever

    async def find(self, secret: str) -> Key | None:
        """The key, if it is valid. A revoked one is found for `FRESH_S` at most, a new one at once.

        Whatever is wrong with it, one look into the store is made before the answer, so each takes the same time.
        """
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
        key_id = digest[:ID_CHARS]
        key = self._valid(key_id, self._fresh().get(key_id), digest)
        if key is None:
            key = self._valid(key_id, _record(await self._commit.call("HGET", keys.ACCESS, key_id)), digest)
        return key

    def _valid(self, key_id: str, record: _Record | None, digest: str) -> Key | None:
        known = record.digest if record else ""
        if not hmac.compare_digest(known.encode(), digest.encode()) or record is None:
            return None
        self._latch()
        key = _key(key_id, record, None)
        if key.expired:
            return None
        self._note_use(key_id)
        return key

    def _fresh(self) -> Mapping[str, _Record]:
        recent = self._read_at is not None and time.monotonic() - self._read_at < FRESH_S
        return self._records if recent else {}

    def _note_use(self, key_id: str) -> None:
        now = time.time()
        if abs(now - self._written.get(key_id, 0)) >= USED_S:
            self._written[key_id] = self._used[key_id] = now

    # What operators ask for

    async def create(self, name: str, role: Role, *, expires_in_s: float | None = None) -> tuple[str, Key]:
        """Make a key; it is told now and never again. Raises `Rejected` for a bad name, or when there are too many."""
        if not _NAME.fullmatch(name):
            raise Rejected("A name is a letter, then up to 63 letters, digits, dots, underscores or hyphens", name=name)
        if int(await self._commit.call("HLEN", keys.ACCESS)) > 2 * MAX_KEYS:
            raise Rejected(f"There are {MAX_KEYS} API keys or more; revoke some first", limit=MAX_KEYS)
        secret = PREFIX + secrets.token_urlsafe(32)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        now = time.time()
        record = _Record(
            digest=digest,
            name=name,
            role=role,
            created_at=now,
            expires_at=None if expires_in_s is None else now + expires_in_s,
        )
        key_id = digest[:ID_CHARS]
        await self._commit.call("HSET", keys.ACCESS, key_id, msgspec.json.encode(record), _EVER, 1)
        return secret, _key(key_id, record, None)

    async def all(self) -> list[Key]:
        """Every key, expired ones as well, oldest first."""
        fields = await self._fields()
        used = {field: float(at) for field, at in fields.items() if field.startswith(_USED.encode())}
        found = [
            _key(key_id, record, used.get(f"{_USED}{key_id}".encode())) for key_id, record in _records(fields).items()
        ]
        return sorted(found, key=lambda key: key.created_at)

    async def revoke(self, key_id: str) -> None:
        """Make a key useless. Raises `NotFound`."""
        if not _ID.fullmatch(key_id.encode()) or not await self._commit.call("HDEL", keys.ACCESS, key_id):
            raise NotFound("There is no such API key", id=key_id)
        await self._commit.call("HDEL", keys.ACCESS, f"{_USED}{key_id}")

    # What keeps the memory fresh

    async def _watch(self) -> None:
        while True:
            with suppress(Unavailable):  # told by the store, once
                await self._read()
                await self._write_use()
            await asyncio.sleep(REFRESH_S)

    async def _read(self) -> None:
        asked_at = time.monotonic()
        fields = await self._fields()
        self._records = _records(fields)
        self._read_at = asked_at
        if _EVER in fields or self._records:
            self._latch()
        unreadable = {name.decode() for name in fields if _ID.fullmatch(name)} - set(self._records)
        if unreadable - self._unreadable:
            log.warning("api_keys_unreadable", ids=sorted(unreadable))
        self._unreadable = unreadable

    async def _write_use(self) -> None:
        used, self._used = self._used, {}
        known = [(f"{_USED}{key_id}", at) for key_id, at in used.items() if key_id in self._records]
        if known:
            await self._commit.call("HSET", keys.ACCESS, *(word for pair in known for word in pair))

    async def _fields(self) -> dict[bytes, bytes]:
        reply = await self._commit.call("HGETALL", keys.ACCESS)
        return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _records(fields: Mapping[bytes, bytes]) -> dict[str, _Record]:
    found = ((name, _record(text)) for name, text in fields.items() if _ID.fullmatch(name))
    return {name.decode(): record for name, record in found if record}


def _record(text: bytes | None) -> _Record | None:
    """What cannot be read, such as a role of a later version, opens nothing."""
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(text or b"", type=_Record)
    return None


def _key(key_id: str, record: _Record, used_at: float | None) -> Key:
    return Key(
        id=key_id,
        name=record.name,
        role=record.role,
        created_at=record.created_at,
        expires_at=record.expires_at,
        used_at=used_at,
    )
