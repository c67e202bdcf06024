"""Words of the store's tests."""

import uuid

from node.errors import Refusal
from node.jobs import Caller, Claim, ContainerOutput, JobRequest, State
from node.store import Store

ME = Caller(id="192.0.2.1", address="192.0.2.1")
OTHER = Caller(id="192.0.2.2", address="192.0.2.2")


def request(*containers: str, data: bytes = b'{"x":1}', proof: bool = False, **timeouts: float) -> JobRequest:
    return JobRequest(containers=containers, data=data, requires_proof=proof, **timeouts)


async def accept(
    store: Store, requests: list[JobRequest], caller: Caller = ME, *, once: str = ""
) -> list[str | Refusal]:
    return await store.submit(caller, [(str(uuid.uuid4()), each) for each in requests], once=once)


async def submitted(store: Store, *containers: str, caller: Caller = ME, **timeouts: float) -> str:
    (job_id,) = await accept(store, [request(*containers, **timeouts)], caller)
    assert isinstance(job_id, str), job_id
    return job_id


async def claimed(store: Store, container: str) -> Claim:
    (claim,), _ = await store.claim(container, 1)
    return claim


def output(container: str, raw: bytes = b'{"y":2}') -> ContainerOutput:
    return ContainerOutput(container=container, output=raw)


async def state_of(store: Store, job_id: str) -> State | None:
    (job,) = await store.get([job_id])
    return job.state if job else None
