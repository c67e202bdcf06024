"""Keeps the containers of this node running: brings each one up, watches it, and brings it up again.

    pulling -> starting -> ready <-> unhealthy
       ^                     │           │
       └──── restarting <────┴───────────┘      (after an exit, with backoff)
    failed: cannot work until someone changes something; looked at again with the longest backoff

What others see of a container is in the `registry`; how it is kept is known here, in the node's main process only.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import structlog

from node.backends.contract import Backend, Instance
from node.config import ContainerSpec
from node.errors import BackendError, readable
from node.registry import Container, Health, Phase, Registry

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
DOWN = (Phase.UNHEALTHY, Phase.RESTARTING, Phase.FAILED)


class Keeper:
    """Keeps one container running, and tells how it stands."""

    def __init__(self, container: Container, backend: Backend, backend_name: str) -> None:
        self.spec = container.spec
        self._container = container
        self._backend = backend
        self._instance: Instance | None = None
        self._latest: Instance | None = None  # the same, until there is another one
        self._step_failed = asyncio.Event()
        container.stands(replace(container.standing, backend=backend_name))
        container.care = self

    def note_failed_step(self) -> None:
        self._step_failed.set()

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
        self._stands(ready=False)
        if self._instance is not None:
            await self._instance.stop(self.spec.stop_grace_s)
        self._tell(Phase.STOPPED, "the node stopped it")

    async def _bring_up(self) -> None:
        instance = await self._backend.start(self.spec, lambda words: self._tell(Phase.PULLING, words))
        self._instance = self._latest = instance
        if instance.loosened:
            log.warning("container_loosened", container=self.spec.id, loosened=list(instance.loosened))
        self._stands(url=instance.url, loosened=instance.loosened)
        self._tell(Phase.STARTING, f"waiting for an answer on {self._container.service.address}")
        gone = asyncio.create_task(instance.exited(), name=f"exit-of-{self.spec.id}")
        try:
            async with asyncio.timeout(self.spec.startup_timeout_s):
                while not await self._answers_before(gone):
                    if gone.done():
                        raise BackendError(gone.result())
                    await asyncio.sleep(PROBE_START_S)
        except TimeoutError:
            raise BackendError(
                f"did not answer on {self._container.service.address} within {self.spec.startup_timeout_s:g} s"
            ) from None
        finally:
            gone.cancel()
        self._become_ready()

    async def _answers_before(self, end: asyncio.Task[str]) -> bool:
        """Whether it is up. Once it has ended nobody answers, and its address may not even refuse."""
        probe = asyncio.create_task(self._container.service.answers(), name=f"probe-{self.spec.id}")
        try:
            await asyncio.wait([end, probe], return_when=asyncio.FIRST_COMPLETED)
            return probe.done() and probe.result()
        finally:
            probe.cancel()

    def _become_ready(self) -> None:
        self._tell(Phase.READY, f"answers on {self._container.service.address}")
        self._stands(ready=True)

    def _stands(self, **facts: Any) -> None:
        self._container.stands(replace(self._container.standing, **facts))

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
            misses = 0 if await self._container.service.answers() else misses + 1
            if misses == 0 and not self._container.ready:
                self._become_ready()
            elif misses == UNHEALTHY_AFTER:
                self._stands(ready=False)
                self._tell(Phase.UNHEALTHY, f"does not answer on {self._container.service.address}")

    async def _keep_log(self, instance: Instance) -> None:
        """After a failed step; a container that fails many is asked only so often."""
        while True:
            await self._step_failed.wait()
            self._step_failed.clear()
            await asyncio.sleep(LOG_SETTLE_S)  # what it says of the failure may come after its answer
            lines = tuple(await instance.log_tail(LOG_LINES))
            self._stands(health=replace(self._container.health, log_tail=lines))

    async def why_down(self) -> str:
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
        self._stands(ready=False)
        lines: list[str] = []
        instance, self._instance = self._instance, None
        if instance is not None:
            lines = await instance.log_tail(LOG_LINES)
            with contextlib.suppress(BackendError):
                await instance.stop(self.spec.stop_grace_s)
        self._tell(phase, reason, restarts=self._container.health.restarts + 1, log_tail=tuple(lines))

    def _tell(self, phase: Phase, reason: str, *, restarts: int | None = None, log_tail: tuple[str, ...] = ()) -> None:
        reason = readable(reason)
        before = self._container.health
        if (before.phase, before.reason) == (phase, reason):
            return
        health = Health(
            phase=phase,
            reason=reason,
            since=before.since if before.phase == phase else time.time(),
            restarts=before.restarts if restarts is None else restarts,
            last_error=reason if phase in DOWN else before.last_error,
            log_tail=log_tail or before.log_tail,
        )
        self._stands(health=health)
        level = log.warning if phase in DOWN else log.info
        level("container_" + phase.value, container=self.spec.id, reason=reason, **_lines(log_tail))


def _lines(log_tail: tuple[str, ...]) -> dict[str, list[str]]:
    return {"log_tail": list(log_tail)} if log_tail else {}


class Keepers:
    """The keepers of all containers. Entering starts them; it waits for none."""

    def __init__(self, registry: Registry, choose: Callable[[ContainerSpec], tuple[str, Backend]]) -> None:
        """choose: which backend, with its name, keeps a container running."""
        self._keepers = [
            Keeper(container, backend, name)
            for container in registry.containers.values()
            for name, backend in (choose(container.spec),)
        ]

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._keeping = [
            self._group.create_task(keeper.keep(), name=f"keep-{keeper.spec.id}") for keeper in self._keepers
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

    async def _stop(self) -> None:
        outcomes = await asyncio.gather(*(keeper.stop() for keeper in self._keepers), return_exceptions=True)
        for keeper, outcome in zip(self._keepers, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                log.error("container_stop_failed", container=keeper.spec.id, error=str(outcome))
