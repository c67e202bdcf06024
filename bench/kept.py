"""Fills a node's store with jobs that have ended, as many as it takes too long to run.

They are copies of a job that the node itself ran. What a job leaves is not known here but found: every key that is
named after it, and every index that has its id. A copy has an id, a caller, data and times of its own; all else is the
same.
`check` compares another real job with a copy, key by key and field by field.
"""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import redis

from bench import jobs
from bench.jobs import Wrong

PART = 500  # copies that one call of the script makes
APART_S = 0.0005  # copies ended so long one before the other
TIME = re.compile(rb"1\d{9}\.\d{6}")  # as a record has it: Unix seconds
ENTRY = re.compile(r"b?1\d{12}-\d+")  # of a stream: its time tells jobs apart as well

# ARGV  1 the job, JSON: { id, number, caller, records = {{ key, fields... }}, indexes = {{ key, score }} }
#       2 seconds, that the first copy is older  3 seconds, that each is older than the one before
#       4... id, number, caller of each copy
COPY = """
local job = cjson.decode(ARGV[1])
local TIME = '1%d%d%d%d%d%d%d%d%d%.%d%d%d%d%d%d'
local from = {}
for i, value in ipairs({ job.id, job.number, job.caller }) do from[i] = string.gsub(value, '%p', '%%%0') end

-- What is to be put anew in a text: found once, because most texts stay as they are.
local function parts(text)
  local found = { text }
  for i = 1, 3 do if string.find(text, from[i]) then found[#found + 1] = i end end
  found.timed = string.find(text, TIME) and true
  return found
end

local function copied(parts, to, older)
  local text = parts[1]
  for i = 2, #parts do text = string.gsub(text, from[parts[i]], to[parts[i]]) end
  if not parts.timed then return text end
  return (string.gsub(text, TIME, function(time) return string.format('%.6f', time - older) end))
end

for _, record in ipairs(job.records) do
  for i, word in ipairs(record) do record[i] = parts(word) end
end
for _, index in ipairs(job.indexes) do index[1] = parts(index[1]) end

local older = tonumber(ARGV[2])
for at = 4, #ARGV, 3 do
  local to = { ARGV[at], ARGV[at + 1], ARGV[at + 2] }
  for _, record in ipairs(job.records) do
    local words = {}
    for i, word in ipairs(record) do words[i] = copied(word, to, older) end
    redis.call('HSET', unpack(words))
  end
  for _, index in ipairs(job.indexes) do
    redis.call('ZADD', copied(index[1], to, older), string.format('%.6f', index[2] - older), to[1])
  end
  older = older + tonumber(ARGV[3])
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a job that has ended left in the store. records: fields by key. indexes: scores by key."""

    id: str
    number: int
    caller: str
    records: Mapping[str, Mapping[str, str]]
    indexes: Mapping[str, float]
    bytes: int
    """Of its records; its places in the indexes come on top."""

    def shape(self) -> Any:
        """What all jobs of this kind have in common: keys, fields, how long and what kind each value is."""
        return (
            {self._general(key): {name: self._general(value) for name, value in record.items()}
             for key, record in self.records.items()},
            sorted(map(self._general, self.indexes)),
        )  # fmt: skip

    def _general(self, text: str) -> str:
        for mine, word in ((self.id, "<id>"), (str(self.number), "<number>"), (self.caller, "<caller>")):
            text = text.replace(mine, word)
        return ENTRY.sub("<entry>", re.sub(TIME.pattern.decode(), "<time>", text))


class Kept:
    """A store, by its socket, and a job in it that the copies are made from."""

    def __init__(self, store: Path, job_id: str, number: int, caller: str) -> None:
        self._client = redis.Redis(unix_socket_path=str(store), decode_responses=True)
        self._copy = self._client.register_script(COPY)
        self._like = self.left(job_id, number, caller)
        self._older_s = 1.0
        self._made = 0

    def left(self, job_id: str, number: int, caller: str) -> Left:
        """What a job left; its keys are looked for among all, so the store should be small."""
        records: dict[str, dict[str, str]] = {}
        indexes: dict[str, float] = {}
        size = 0
        for key in self._client.scan_iter(count=1000):
            kind = self._client.type(key)
            if job_id in key:
                if kind != "hash":
                    raise Wrong(f"job {job_id} left a {kind}, and only hashes can be copied: {key}")
                records[key] = self._client.hgetall(key)
                size += self._client.memory_usage(key, samples=0)
            elif kind == "zset" and (score := self._client.zscore(key, job_id)) is not None:
                indexes[key] = score
        if not records:
            raise Wrong(f"job {job_id} left nothing")
        return Left(id=job_id, number=number, caller=caller, records=records, indexes=indexes, bytes=size)

    def check(self, job_id: str, number: int, caller: str) -> tuple[int, int]:
        """One copy is as that other job, which ran. Bytes of the record of each."""
        ((copy_id, (copy_number, copy_caller)),) = self.add(1, [caller]).items()
        copy, real = self.left(copy_id, copy_number, copy_caller), self.left(job_id, number, caller)
        if copy.shape() != real.shape():
            raise Wrong(f"a copied job is {copy.shape()}, and one that ran {real.shape()}")
        return copy.bytes, real.bytes

    def add(self, count: int, callers: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Make copies, of one caller after the other; number and caller of each, by its id."""
        made = {self._new_id(): (jobs.number(), callers[(self._made + place) % len(callers)]) for place in range(count)}
        self._made += count
        like = self._like
        job = msgspec.json.encode(
            {
                "id": like.id,
                "number": str(like.number),
                "caller": like.caller,
                "records": [[key, *_flat(record)] for key, record in like.records.items()],
                "indexes": list(like.indexes.items()),
            }
        )
        for part in _parts([(job_id, number, caller) for job_id, (number, caller) in made.items()]):
            self._copy(args=[job, self._older_s, APART_S, *(word for each in part for word in each)])
            self._older_s += APART_S * len(part)
        return made

    def used_bytes(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    def rewriting(self) -> bool:
        """Whether the server writes its append-only file anew, beside its work."""
        told: Any = self._client.info("persistence")
        return bool(told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])

    def close(self) -> None:
        self._client.close()

    def _new_id(self) -> str:
        made = str(uuid.uuid4())
        if len(made) != len(self._like.id):
            raise Wrong(f"ids of this node are not like {made}: {self._like.id}")
        return made


def _flat(record: Mapping[str, str]) -> Iterator[str]:
    return (word for pair in record.items() for word in pair)


def _parts(copies: Sequence[tuple[str, int, str]]) -> Iterator[Sequence[tuple[str, int, str]]]:
    return (copies[i : i + PART] for i in range(0, len(copies), PART))
