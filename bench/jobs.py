"""The jobs that are sent, each with data of its own, and the check of what comes back. A wrong answer ends the run."""

import itertools
from collections.abc import Mapping, Sequence

import msgspec

FIRST = 3 * 10**11  # all numbers have as many digits, so all jobs have the same size; no other text of a job holds one


class Wrong(Exception):
    """An answer is not what it must be; the text says which and how."""


class Result(msgspec.Struct):
    container: str
    output: msgspec.Raw = msgspec.Raw(b"")  # none in a failed step
    error: str | None = None


class JobResult(msgspec.Struct):
    id: str
    status: str
    result: Result | None
    intermediate_results: list[Result] = []


class Accepted(msgspec.Struct):
    id: str


_numbers = itertools.count(FIRST)
_results = msgspec.json.Decoder(list[JobResult])
_accepted = msgspec.json.Decoder(Accepted)
_all_accepted = msgspec.json.Decoder(list[Accepted])


def number() -> int:
    """What makes a job unlike all others of this run."""
    return next(_numbers)


def data(of: int) -> bytes:
    """Some 100 bytes that do not survive being decoded and encoded again."""
    return b'{"job":%d,"exact":0.1000000000000000055,"wide":%d000000000000000000,"text":"h\\u00e9llo, caf\xc3\xa9"}' % (
        of,
        of,
    )


def job(chain: Sequence[str], of: int) -> bytes:
    return b'{"containers":%b,"data":%b}' % (msgspec.json.encode(chain), data(of))


def call(of: int) -> bytes:
    """The same job as the node would send it to a container."""
    return b'{"source":1,"destination":1,"data":%b,"requires_proof":false}' % data(of)


def batch(chain: Sequence[str], of: Sequence[int]) -> bytes:
    return b"[%b]" % b",".join(job(chain, each) for each in of)


def accepted(reply: bytes) -> str:
    """The id in the answer to a job."""
    try:
        return _accepted.decode(reply).id
    except msgspec.DecodeError:
        raise Wrong(f"a job was not accepted: {reply[:200]!r}") from None


def all_accepted(reply: bytes, of: Sequence[int]) -> dict[str, int]:
    """The ids in the answer to a batch, each with the job's number."""
    try:
        answers = _all_accepted.decode(reply)
    except msgspec.DecodeError:
        raise Wrong(f"a batch was not accepted: {reply[:200]!r}") from None
    if len(answers) != len(of):
        raise Wrong(f"a batch of {len(of)} had {len(answers)} answers")
    return dict(zip((answer.id for answer in answers), of, strict=True))


def check_distinct(ids: Mapping[str, int], count: int) -> None:
    if len(ids) != count:
        raise Wrong(f"{count} jobs were accepted under {len(ids)} ids")


def check_echo(reply: bytes, of: int) -> None:
    if reply != data(of):
        raise Wrong(f"the echo container answered {reply[:200]!r} to {data(of)!r}")


def check_waiting(reply: bytes, ids: Sequence[str]) -> None:
    """These jobs, in this order, are known and wait."""
    found = _decoded(reply, ids)
    for result in found:
        if result.status != "running" or result.result is not None:
            raise Wrong(f"job {result.id} waits for no container, and yet is {result.status}")


def check_done(reply: bytes, ids: Sequence[str], sent: Mapping[str, int], chain: Sequence[str]) -> None:
    """These jobs, in this order, succeeded; every output along the chain is byte for byte what was sent.

    The reply must have the intermediate results.
    """
    for result in _decoded(reply, ids):
        if result.status != "success" or result.result is None:
            raise Wrong(f"job {result.id} ended as {result.status}: {result.result}")
        steps = [*result.intermediate_results, result.result]
        if [step.container for step in steps] != list(chain):
            raise Wrong(f"job {result.id} passed {[step.container for step in steps]}, not {list(chain)}")
        wanted = data(sent[result.id])
        for step in steps:
            if bytes(step.output) != wanted:
                raise Wrong(f"job {result.id}: {step.container} answered {bytes(step.output)!r}, not {wanted!r}")


def _decoded(reply: bytes, ids: Sequence[str]) -> list[JobResult]:
    try:
        found = _results.decode(reply)
    except msgspec.DecodeError:
        raise Wrong(f"results cannot be read: {reply[:200]!r}") from None
    if [result.id for result in found] != list(ids):
        raise Wrong(f"{len(ids)} results were asked for, and {len(found)} came, or in another order")
    return found
