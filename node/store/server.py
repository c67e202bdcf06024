"""What the safety of jobs asks of the Redis or Valkey server, and whether it is so.

Only reads: INFO, CONFIG GET and TIME.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from node.errors import Unavailable
from node.findings import Finding, fault, ok, size, warning

KIND = "store"
"""The check that says whether it is a server that can take jobs at all."""

OLDEST = (7, 0)
NEARLY_FULL = 0.9  # of the memory limit
CLOCK_S = 2.0  # between the server's clock and ours

Call = Callable[..., Awaitable[Any]]
"""Sends one command; its reply as redis-py reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the server says of itself. settings: empty when it does not tell them. ahead_s: its clock before ours."""

    info: Mapping[str, Any]
    settings: Mapping[str, str]
    ahead_s: float


async def facts(call: Call) -> Facts:
    """Ask the server. Raises `Unavailable`."""
    began = time.time()
    seconds, microseconds = await call("TIME")
    ahead_s = seconds + microseconds / 1e6 - (began + time.time()) / 2
    info = await call("INFO")
    try:
        settings = await call("CONFIG GET", "*")
    except Unavailable:  # a hosted server, or a user without that right
        settings = {}
    return Facts(info=info, settings={_text(name): _text(value) for name, value in settings.items()}, ahead_s=ahead_s)


def findings(server: Facts) -> Iterator[Finding]:
    """Each thing that matters, one finding."""
    yield from _kind(server.info)
    yield from _durability(server)
    yield from _memory(server.info)
    yield from _disk(server.info)
    yield _clock(server.ahead_s)


def _kind(info: Mapping[str, Any]) -> Iterator[Finding]:
    valkey = info.get("valkey_version")
    version = str(info.get("redis_version", "0"))
    name = f"Valkey {valkey}" if valkey else f"Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        yield fault(KIND, f"{name} is too old", "use Redis 7.0 or later, or Valkey")
    elif info.get("role") == "slave":
        yield fault(KIND, f"{name} is a replica, which takes no jobs", "point redis.url at the primary")
    else:
        yield ok(KIND, f"{name} answers")


def _durability(server: Facts) -> Iterator[Finding]:
    if not server.info.get("aof_enabled"):
        do = "CONFIG SET appendonly yes, and the same in the server's file"
        yield fault("append-only", "the append-only file is off: jobs are lost when the server ends", do)
        return
    if not server.settings:
        do = "allow the node's user CONFIG GET, or make sure of appendfsync always"
        yield warning("append-only", "on, but the server does not tell when it is forced to disk", do)
        return
    sync = server.settings.get("appendfsync")
    if sync == "always":
        yield ok("append-only", "on, forced to disk before each answer")
    else:
        last = "what the system had not written yet" if sync == "no" else "its last second"
        do = "CONFIG SET appendfsync always, or live with it"
        yield warning("append-only", f"appendfsync is {sync}: a crash of the machine loses {last}", do)
    if server.settings.get("auto-aof-rewrite-percentage") == "0":
        do = "CONFIG SET auto-aof-rewrite-percentage 100"
        yield warning("append-only", "the file is never rewritten, and grows for ever", do)


def _memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        do = "CONFIG SET maxmemory-policy noeviction, and the same in the server's file"
        yield fault("eviction", f"maxmemory-policy is {policy}: at the limit the server throws jobs away", do)
    limit = int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    if not limit:
        do = "CONFIG SET maxmemory to what the machine can spare"
        yield warning("memory", f"{size(used)} used, no limit: the system kills the server when memory runs out", do)
    elif used >= limit:
        yield fault("memory", f"full, {size(limit)} used: no job is accepted", "raise maxmemory, or collect results")
    elif used >= limit * NEARLY_FULL:
        do = "raise maxmemory before jobs are refused"
        yield warning("memory", f"nearly full: {size(used)} of {size(limit)} used", do)
    else:
        yield ok("memory", f"{size(used)} of {size(limit)} used")


def _disk(info: Mapping[str, Any]) -> Iterator[Finding]:
    """What the server last told of its files."""
    if info.get("aof_last_write_status", "ok") != "ok":
        yield fault("store disk", "the server cannot write its append-only file", "free space on the server's disk")
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        do = "free space on the server's disk; a rewrite needs as much again as the data"
        yield warning("store disk", "the last rewrite of the append-only file failed: it goes on growing", do)
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        do = "free space on the server's disk, or CONFIG SET save '' since the append-only file is enough"
        yield warning("store disk", "the last snapshot failed: the server may refuse to write", do)


def _clock(ahead_s: float) -> Finding:
    if abs(ahead_s) < CLOCK_S:
        return ok("clock", f"the server's is within {CLOCK_S:g} s of this machine's")
    side = "ahead of" if ahead_s > 0 else "behind"
    do = "set both by NTP; leases do not depend on it, times in logs and records do"
    return warning("clock", f"the server's is {abs(ahead_s):,.1f} s {side} this machine's", do)


def _text(word: bytes | str) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else word
