"""The JSON that the doors take and answer, and the job model made into it. `openapi` tells clients the same shapes.

What is opaque (`data`, `output`) is any JSON; it travels as the text that it came in.
"""

from typing import Annotated, Any, Literal, NotRequired

import msgspec
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from node import jobs
from node.errors import Refusal
from node.registry import Container as Served
from node.registry import Phase

MAX_TIMEOUT_S = 1e9
MAX_ID_CHARS = 128  # of an id that somebody else chose
MAX_PAGE = 10_000  # ids of a list in one answer, when a part is asked for

Status = Literal["running", "success", "failed"]

STATUS: dict[jobs.State, Status] = {
    jobs.State.QUEUED: "running",  # Infernet has three words, and its client polls while it reads this one
    jobs.State.RUNNING: "running",
    jobs.State.SUCCEEDED: "success",
    jobs.State.FAILED: "failed",
    jobs.State.CANCELLED: "failed",
}


class Error(TypedDict):
    """Why a request was refused."""

    error: Annotated[str, Field(description="What happened and what to do, for a reader.")]
    params: Annotated[dict[str, Any], Field(description="Named facts of it, for a program.")]


PageSize = Annotated[int, Field(ge=1, le=MAX_PAGE)]
JobId = Annotated[str, Field(max_length=MAX_ID_CHARS)]
Seconds = Annotated[float, Field(gt=0, lt=MAX_TIMEOUT_S)]


@with_config(ConfigDict(extra="forbid"))
class Timeouts(TypedDict):
    """Time limits in seconds. The node's own hold as well."""

    queue_s: NotRequired[Annotated[Seconds, Field(description="Longest wait in one container's queue.")]]
    total_s: NotRequired[Annotated[Seconds, Field(description="Longest time from acceptance to the end.")]]


CONTAINERS = "Ids of containers, in order; each gets the output of the one before it."
Data = Annotated[dict[str, Any], Field(description="Any object. It reaches the container as the text that was sent.")]
Proof = Annotated[bool | None, Field(description="Passed on; refused when the last container generates no proofs.")]


class JobRequest(TypedDict):
    """A chain of containers, and what the first one gets. Other fields, such as `id` or `status`, are not looked at."""

    containers: Annotated[list[str], Field(min_length=1, description=CONTAINERS)]
    data: Data
    requires_proof: NotRequired[Proof]
    timeouts: NotRequired[Timeouts | None]


class StreamRequest(TypedDict):
    """One container, and what it gets."""

    containers: Annotated[list[str], Field(min_length=1, max_length=1, description="The container's id.")]
    data: Data
    requires_proof: NotRequired[Proof]


class Accepted(TypedDict):
    """The job is on disk, and will end."""

    id: Annotated[str, Field(description="The job's id.")]


class ContainerOutput(TypedDict):
    """What a step answered."""

    container: str
    output: Annotated[Any, Field(description="Any JSON, as the container sent it.")]


class ContainerError(TypedDict):
    """Why a step, and with it the job, failed."""

    container: Annotated[str, Field(description="The container that failed; empty when it was none's fault.")]
    error: Annotated[str, Field(min_length=1)]


class JobResult(TypedDict):
    """A job as it is now."""

    id: str
    intermediate_results: NotRequired[
        Annotated[list[ContainerOutput], Field(description="The steps before the last, oldest first; when asked for.")]
    ]
    result: Annotated[
        ContainerOutput | ContainerError | None,
        Field(description="The last output, or what ended the job; null until then."),
    ]
    status: Annotated[Status, Field(description="`running` from the moment it is accepted until it ends.")]


class StatusReport(TypedDict):
    """How a job stands that somebody else runs."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    status: Status
    containers: list[str]


class Container(TypedDict):
    description: str
    external: Annotated[bool, Field(description="May a chain begin with it.")]
    id: str
    image: str


class ContainerHealth(Container):
    """The same, and how it is."""

    backend: Annotated[str, Field(description="What keeps it running.")]
    last_error: Annotated[str, Field(description="Why it failed the last time; empty when it has not.")]
    log_tail: Annotated[list[str], Field(description="Its last lines, when it failed.")]
    loosened: Annotated[list[str], Field(description="What it was allowed beyond its isolation profile.")]
    reason: Annotated[str, Field(description="Why it is not ready; empty when it is.")]
    restarts: int
    since: Annotated[float, Field(description="Unix seconds of the state's begin.")]
    state: Phase


class Pending(TypedDict):
    """Jobs that have not ended."""

    offchain: Annotated[int | None, Field(description="null when asked verbosely while the store does not answer.")]
    onchain: int


class Chain(TypedDict):
    address: str
    enabled: bool


class Info(TypedDict):
    """The node and its containers."""

    chain: Chain
    containers: Annotated[
        list[Container] | list[ContainerHealth],
        Field(description="Those that are ready; with `verbose` all of them, and how they are."),
    ]
    pending: Pending
    version: str


class Health(TypedDict):
    reason: NotRequired[str]
    status: Literal["healthy", "unhealthy"]


class Live(TypedDict):
    status: Literal["live"]


class Readiness(TypedDict):
    reasons: Annotated[list[str], Field(description="Why no request should be sent here now.")]
    status: Literal["ready", "unready"]
    warnings: Annotated[list[str], Field(description="What somebody should look at, although the node takes jobs.")]


def error(refusal: Refusal) -> Error:
    return {"error": refusal.message, "params": refusal.params}


def answer(accepted: str | Refusal) -> Accepted | Error:
    """An item's place in the answer to a batch."""
    return error(accepted) if isinstance(accepted, Refusal) else {"id": accepted}


def job_result(job: jobs.Job, *, intermediate: bool) -> JobResult:
    result = _outcome(job.result)
    if not intermediate:
        return {"id": job.id, "result": result, "status": STATUS[job.state]}
    before = [_output(each) for each in job.intermediate]
    return {"id": job.id, "intermediate_results": before, "result": result, "status": STATUS[job.state]}


def _outcome(result: jobs.ContainerResult | None) -> ContainerOutput | ContainerError | None:
    if isinstance(result, jobs.ContainerOutput):
        return _output(result)
    return {"container": result.container, "error": result.error} if result else None


def _output(result: jobs.ContainerOutput) -> ContainerOutput:
    return {"container": result.container, "output": msgspec.Raw(result.output)}


def container(served: Served) -> Container:
    spec = served.spec
    return {"description": spec.description, "external": spec.external, "id": spec.id, "image": spec.image}


def container_health(served: Served) -> ContainerHealth:
    health = served.health
    return {
        **container(served),
        "backend": served.standing.backend,
        "last_error": health.last_error,
        "log_tail": list(health.log_tail),
        "loosened": list(served.standing.loosened),
        "reason": health.reason,
        "restarts": health.restarts,
        "since": health.since,
        "state": health.phase,
    }
