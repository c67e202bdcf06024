"""The containers of this node: each one's spec, how it is kept running, how it is now, and its `Service`.

    pulling -> starting -> ready <-> unhealthy
       ^                     │           │
       └──── restarting <────┴───────────┘      (after an exit, with backoff)
    failed: cannot work until someone changes something; looked at again with the longest backoff

A container that is not ready loses no jobs: its lane waits.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import structlog

from node.backends.contract import Backend, Instance
from node.config import Config, ContainerSpec
from node.errors import BackendError, readable
from node.service import Service

log = structlog.get_logger()

PROBE_START_S = 0.05  # between probes of a container that comes up
PROBE_READY_S = 5.0  # between probes of one that is up
UNHEALTHY_AFTER = 3  # failed probes in a row
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
LOG_LINES = 20  # kept with a failure
LOG_SETTLE_S = 0.5
WHY_S = 2.0  # longest wait for the news that a container has ended whose connection broke
WHY_LOOK_S = 0.1


class Phase(StrEnum):
    PULLING = "pulling"  # its image is pulled or built, or its environment installed; `reason` says how far
    STARTING = "starting"  # it was started, and has not answered yet
    READY = "ready"
    UNHEALTHY = "unhealthy"  # runs, but does not answer
    RESTARTING = "restarting"  # ended; started again after a pause
    FAILED = "failed"  # could not be brought up; tried again after a pause
    STOPPED = "stopped"


DOWN = (Phase.UNHEALTHY, Phase.RESTARTING, Phase.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a container is. `reason` is in words, `since` in Unix seconds.

    last_error: why it last went down. log_tail: its last lines when it last went down, or failed a step.
    """

    phase: Phase
    reason: str
    since: float
    restarts: int = 0
    last_error: str = ""
    log_tail: tuple[str, ...] = ()


class Keeper:
    """Keeps one container running and knows how it is."""

    def __init__(self, spec: ContainerSpec, backend: Backend, backend_name: str) -> None:
        self.spec = spec
        self.backend_name = backend_name
        self.service = Service(spec, self._why_down)
        self.health = Health(phase=Phase.STARTING, reason="not begun yet", since=time.time())
        self._backend = backend
        self._instance: Instance | None = None
        self._latest: Instance | None = None  # the same, until there is another one
        self._ready = asyncio.Event()
        self._step_failed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    async def until_ready(self) -> None:
        await self._ready.wait()

    def on_ready(self, told: Callable[[], None]) -> None:
        """Have `told` called each time it becomes ready."""
        self._listeners.append(told)

    def note_failed_step(self) -> None:
        """Its last log lines are of interest now; they are fetched soon, and shown with its health."""
        self._step_failed.set()

    @property
    def loosened(self) -> tuple[str, ...]:
        """What it may do although its profile says otherwise, in words."""
        return self._latest.loosened if self._latest is not None else ()

    async def keep(self) -> None:
        """Bring it up, watch it, and bring it up again, for ever."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            began = time.monotonic()
            try:
                await self._bring_up()
                await self._watch()
            except BackendError as error:
                phase = Phase.RESTARTING if error.retry else Phase.FAILED
                await self._failed(phase, str(error))
                if not error.retry:
                    backoff_s = BACKOFF_MAX_S
            except Exception as error:  # a fault in one backend leaves the other containers alone
                log.exception("container_keeper_failed", container=self.spec.id)
                await self._failed(Phase.FAILED, f"internal error: {error or type(error).__name__}")
            if time.monotonic() - began > BACKOFF_MAX_S:
                backoff_s = BACKOFF_FIRST_S  # it ran well for a while
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def stop(self) -> None:
        self._ready.clear()
        if self._instance is not None:
            await self._instance.stop(self.spec.stop_grace_s)
        self._tell(Phase.STOPPED, "the node stopped it")

    async def _bring_up(self) -> None:
        instance = await self._backend.start(self.spec, lambda words: self._tell(Phase.PULLING, words))
        self._instance = self._latest = instance
        if instance.loosened:
            log.warning("container_loosened", container=self.spec.id, loosened=list(instance.loosened))
        self.service.url = instance.url
        self._tell(Phase.STARTING, f"waiting for an answer on {self.service.address}")
        gone = asyncio.create_task(instance.exited(), name=f"exit-of-{self.spec.id}")
        try:
            async with asyncio.timeout(self.spec.startup_timeout_s):
                while not await self._answers_before(gone):
                    if gone.done():
                        raise BackendError(gone.result())
                    await asyncio.sleep(PROBE_START_S)
        except TimeoutError:
            raise BackendError(
                f"did not answer on {self.service.address} within {self.spec.startup_timeout_s:g} s"
            ) from None
        finally:
            gone.cancel()
        self._become_ready()

    async def _answers_before(self, end: asyncio.Task[str]) -> bool:
        """Whether it is up. Once it has ended nobody answers, and its address may not even refuse."""
        probe = asyncio.create_task(self.service.answers(), name=f"probe-{self.spec.id}")
        try:
            await asyncio.wait([end, probe], return_when=asyncio.FIRST_COMPLETED)
            return probe.done() and probe.result()
        finally:
            probe.cancel()

    def _become_ready(self) -> None:
        self._tell(Phase.READY, f"answers on {self.service.address}")
        self._ready.set()
        for told in self._listeners:
            told()

    async def _watch(self) -> None:
        """Until it ends; then raises `BackendError` with the reason."""
        instance = self._instance
        if instance is None:
            raise BackendError("was never started")
        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(self._probe(), name=f"probe-{self.spec.id}"),
                tasks.create_task(self._keep_log(instance), name=f"log-{self.spec.id}"),
            ]
            reason = await instance.exited()
            for task in watching:
                task.cancel()
        raise BackendError(reason)

    async def _probe(self) -> None:
        misses = 0
        while True:
            await asyncio.sleep(PROBE_READY_S)
            misses = 0 if await self.service.answers() else misses + 1
            if misses == 0 and not self.ready:
                self._become_ready()
            elif misses == UNHEALTHY_AFTER:
                self._ready.clear()
                self._tell(Phase.UNHEALTHY, f"does not answer on {self.service.address}")

    async def _keep_log(self, instance: Instance) -> None:
        """After a failed step; a container that fails many is asked only so often."""
        while True:
            await self._step_failed.wait()
            self._step_failed.clear()
            await asyncio.sleep(LOG_SETTLE_S)  # what it says of the failure may come after its answer
            self.health = replace(self.health, log_tail=tuple(await instance.log_tail(LOG_LINES)))

    async def _why_down(self) -> str:
        """A call to it broke: how it ended, or what befell it though it runs on; nothing when nobody can tell soon."""
        instance = self._latest
        if instance is None:
            return ""
        ended = asyncio.create_task(instance.exited(), name=f"why-{self.spec.id}")
        try:
            async with asyncio.timeout(WHY_S):
                while not await self._answers_before(ended) and not ended.done():
                    await asyncio.wait([ended], timeout=WHY_LOOK_S)
        except TimeoutError:
            pass
        finally:
            ended.cancel()
        return ended.result() if ended.done() and not ended.cancelled() else await instance.mishap()

    async def _failed(self, phase: Phase, reason: str) -> None:
        self._ready.clear()
        lines: list[str] = []
        instance, self._instance = self._instance, None
        if instance is not None:
            lines = await instance.log_tail(LOG_LINES)
            with contextlib.suppress(BackendError):
                await instance.stop(self.spec.stop_grace_s)
        self._tell(phase, reason, restarts=self.health.restarts + 1, log_tail=tuple(lines))

    def _tell(self, phase: Phase, reason: str, *, restarts: int | None = None, log_tail: tuple[str, ...] = ()) -> None:
        reason = readable(reason)
        before = self.health
        if (before.phase, before.reason) == (phase, reason):
            return
        self.health = Health(
            phase=phase,
            reason=reason,
            since=before.since if before.phase == phase else time.time(),
            restarts=before.restarts if restarts is None else restarts,
            last_error=reason if phase in DOWN else before.last_error,
            log_tail=log_tail or before.log_tail,
        )
        level = log.warning if phase in DOWN else log.info
        level("container_" + phase.value, container=self.spec.id, reason=reason, **_lines(log_tail))


def _lines(log_tail: tuple[str, ...]) -> dict[str, list[str]]:
    return {"log_tail": list(log_tail)} if log_tail else {}


class Registry:
    """All keepers, by container id in the order of the configuration. Entering starts them; it waits for none."""

    def __init__(self, config: Config, choose: Callable[[ContainerSpec], tuple[str, Backend]]) -> None:
        """choose: which backend, with its name, keeps a container running."""
        self._keepers = {
            spec.id: Keeper(spec, backend, name) for spec in config.containers for name, backend in (choose(spec),)
        }

    @property
    def keepers(self) -> Mapping[str, Keeper]:
        return self._keepers

    def __getitem__(self, container: str) -> Keeper:
        return self._keepers[container]

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        for keeper in self._keepers.values():
            await self._stack.enter_async_context(keeper.service)
        self._group = await asyncio.TaskGroup().__aenter__()
        self._keeping = [
            self._group.create_task(keeper.keep(), name=f"keep-{container}")
            for container, keeper in self._keepers.items()
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._keeping:
            task.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        finally:
            await self._stop()

    async def resources(self, model_id: str | None) -> dict[str, Any]:
        """What each ready container says of its resources; those that say nothing are left out."""
        ready = {container: keeper.service for container, keeper in self._keepers.items() if keeper.ready}
        answers = await asyncio.gather(*(service.resources(model_id) for service in ready.values()))
        return {container: answer for container, answer in zip(ready, answers, strict=True) if answer is not None}

    async def _stop(self) -> None:
        outcomes = await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()), return_exceptions=True)
        for container, outcome in zip(self._keepers, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                log.error("container_stop_failed", container=container, error=str(outcome))
        await self._stack.aclose()
