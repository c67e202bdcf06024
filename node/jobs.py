"""The job model: what was asked, by whom, where it stands, and what came of it. Pure values; no I/O.

A job's life::

    queued ──claim──> running ──last step's output──> succeeded
      ^                 │ │ └───a step's error──────> failed
      └── next step, ───┘ └─────cancel──────────────> cancelled      (also from queued)
          hand-back, lost claim

The transitions themselves are the store's scripts: each is one atomic step on the server.

What is made for every request, job or step is a `msgspec.Struct`: frozen as a dataclass, and made ten times as fast.
"""

import os
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class State(StrEnum):
    QUEUED = "queued"  # waits in the lane of its next container
    RUNNING = "running"  # a node has claimed its current step
    SUCCEEDED = "succeeded"  # every step has an output
    FAILED = "failed"  # a step ended in an error; the reason is the job's result
    CANCELLED = "cancelled"  # stopped on request, with a reason

    @property
    def terminal(self) -> bool:
        """No transition leaves this state."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Role(StrEnum):
    """What an API key may do; each may also do what stands above it."""

    READ = "read"  # see its own jobs and the node
    SUBMIT = "submit"  # send jobs, and cancel its own
    ADMIN = "admin"  # see and do everything, with everybody's jobs

    def covers(self, needed: "Role") -> bool:
        return _RANK[self] >= _RANK[needed]


_RANK = {role: rank for rank, role in enumerate(Role)}


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. Made by the door from the key or the connection, never from a body.

    id: what jobs are filed under: the name of the key, else the address. address: the client's IP address, for a
    container's `allowed_ips`. role: the key's; None where no keys are in use, and then nobody is refused for it.
    """

    id: str
    address: str
    role: Role | None = None

    @property
    def sees_all(self) -> bool:
        """Whether the jobs of all callers are this one's to see, list and cancel; else its own ones only."""
        return self.role is Role.ADMIN


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a body asked for. `data` is the strict JSON text of an object, as it came.

    queue_timeout_s: longest wait in one queue. timeout_s: longest time from acceptance to the end. None: the node's.
    """

    containers: tuple[str, ...]
    data: bytes
    requires_proof: bool = False
    queue_timeout_s: float | None = None
    timeout_s: float | None = None


class ContainerOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A step's good outcome. `output` is strict JSON text, as the container sent it."""

    container: str
    output: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerError:
    """A step's bad outcome, in words that name the container and the fact. Never empty.

    again: the call may be repeated, because the container has not begun it, or says that it could not.
    """

    container: str
    error: str
    again: bool = field(default=False, compare=False)


ContainerResult = ContainerOutput | ContainerError


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a job as the store has it now. `created_at` and `ended_at` are Unix seconds of the store's clock.

    result: the last output or the error that ended it; None until the end, and for an end that somebody reported.
    intermediate: the outputs before it, oldest first; empty unless asked for.
    """

    id: str
    caller: str
    containers: tuple[str, ...]
    state: State
    step: int
    attempt: int
    created_at: float
    ended_at: float | None
    result: ContainerResult | None
    intermediate: tuple[ContainerOutput, ...]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One step that this node runs now.

    attempt: the fencing token; grows with each claim of the job, and the store refuses whoever holds an older one.
    entry: id of the lane's stream entry. input: strict JSON text, the job's data or the previous step's output; of a
    large one None, for the store to be asked when its turn has come. input_bytes: its size.
    """

    job_id: str
    caller: str
    containers: tuple[str, ...]
    step: int
    attempt: int
    entry: str
    input: bytes | None
    input_bytes: int
    requires_proof: bool

    @property
    def container(self) -> str:
        return self.containers[self.step]

    @property
    def next_container(self) -> str | None:
        """Where the output goes, or None when this is the last step."""
        return self.containers[self.step + 1] if self.step + 1 < len(self.containers) else None


def new_id() -> str:
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """Ids of jobs: UUIDs of 122 random bits (version 4), made without the objects that `uuid.uuid4` makes first."""
    digits = os.urandom(16 * count).hex()
    return [_uuid(digits[start : start + 32]) for start in range(0, len(digits), 32)]


def _uuid(digits: str) -> str:
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
