"""The Docker SDK behind a fence: it blocks, so every call runs in a thread, with a deadline, and can be given up.

Short calls share one client and one pool of threads (`Engine.call`). A call whose answer is a stream (events, a pull,
a build) gets a thread and a connection of its own (`Engine.follow`), which is closed when the waiting task is
cancelled: a thread blocked in such a read cannot be ended in another way.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException, StreamParseError
from docker.types import CancellableStream
from docker.utils import kwargs_from_env

from node.errors import BackendError

T = TypeVar("T")
Work = Callable[[Any], T]
"""Blocking work with an `APIClient`; `Any`, because the published stubs leave some of its methods out."""

CALL_S = 30
"""Longest wait for the answer to a short call, when nothing else is said."""

LEAVE_S = 5.0
"""How long leaving waits for calls under way. A thread that is still stuck then ends with its own deadline."""

FAULTS = (DockerException, StreamParseError, requests.RequestException, urllib3.exceptions.HTTPError)
"""What the SDK raises when the engine does not answer. `APIError`, an answer that says no, is one of them."""


class Engine:
    """One Docker engine: `base_url`, or what `DOCKER_HOST` and its companions say, or the usual socket.

    Connects when first needed, and again when the connection was lost. call_s: longest wait for a short call.
    """

    def __init__(self, *, base_url: str = "", workers: int = 32, call_s: int = CALL_S) -> None:
        self._where: dict[str, Any] = {"base_url": base_url} if base_url else dict(kwargs_from_env())
        self._workers = workers
        self._call_s = call_s
        self._lock = threading.Lock()
        self._client: APIClient | None = None
        self._under_way: set[Future[Any]] = set()

    async def __aenter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="stoker-docker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiting = [asyncio.wrap_future(future) for future in tuple(self._under_way)]
        for each in waiting:  # nobody asks for them any more
            each.add_done_callback(lambda done: done.cancelled() or done.exception())
        if waiting:
            await asyncio.wait(waiting, timeout=LEAVE_S)
        self._pool.shutdown(wait=not self._under_way, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    @property
    def address(self) -> str:
        """Where the engine is looked for, for messages."""
        return str(self._where.get("base_url") or "unix:///var/run/docker.sock")

    async def call(self, work: Work[T], *, extra_s: float = 0) -> T:
        """Run `work` in a thread. Raises `APIError` if the engine says no, `BackendError` if it does not answer.

        `extra_s` is added to the deadline for calls that wait themselves, such as a stop.
        """

        def knocked() -> T:
            self._knock()
            return work(self._connected())

        return await self.thread(knocked, extra_s=extra_s)

    async def thread(self, work: Callable[[], T], *, extra_s: float = 0) -> T:
        """Like `call`, for blocking work that does not need the engine."""
        future = self._pool.submit(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        # The SDK's own timeout is the same and frees the thread; a little more here lets its message win.
        # Not `wait_for`: before Python 3.12 it can swallow a cancellation.
        with self._told():
            async with asyncio.timeout(self._call_s + extra_s + 2):
                return await asyncio.wrap_future(future)

    async def follow(self, name: str, work: Work[T], *, silence_s: int) -> T:
        """Run `work`, which reads a stream, in a thread of its own; `silence_s` without a byte is an error.

        Cancelling closes the stream. A thread that has no answer at all yet cannot be woken: it is left behind, is a
        daemon, and ends after `silence_s` at the latest. Errors as those of `call`.
        """
        client = await self.call(lambda shared: _Follower(version=shared.api_version, timeout=silence_s, **self._where))
        result: Future[T] = Future()
        threading.Thread(target=_run, args=(client, work, result), name=f"stoker-docker-{name}", daemon=True).start()
        waiter = asyncio.wrap_future(result)
        try:
            with self._told():
                return await asyncio.shield(waiter)
        finally:
            if not waiter.done():
                client.abort()
                await asyncio.wait([waiter], timeout=1)
            if not waiter.cancel():
                waiter.exception()  # seen, or seen to be given up: nobody else will ask

    def _knock(self) -> None:
        """Fail early where nobody listens: in plain words, and without the socket that the SDK then leaves unclosed."""
        scheme, _, path = self.address.partition("://")
        if not scheme.endswith("unix"):
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._call_s)
            try:
                probe.connect(f"/{path.lstrip('/')}")
            except OSError as error:
                hint = ": is this user in the group `docker`?" if isinstance(error, PermissionError) else ""
                raise self._silent(f"{error.strerror or error}{hint}") from None

    def _connected(self) -> APIClient:
        """The shared client. Connecting races are harmless: a lock held over a dead connection would not be."""
        if self._client is not None:
            return self._client
        fresh = APIClient(version="auto", timeout=self._call_s, max_pool_size=self._workers, **self._where)
        with self._lock:
            if self._client is None:
                self._client = fresh
                return fresh
        fresh.close()
        return self._client

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except APIError:
            raise
        except TimeoutError as error:
            raise BackendError(f"the Docker engine at {self.address} did not answer in time") from error
        except FAULTS as error:
            raise self._silent(str(error)) from error

    def _silent(self, reason: str) -> BackendError:
        return BackendError(f"the Docker engine at {self.address} does not answer: {reason}")


class _Follower(APIClient):
    """A client for one stream: bounded silence, where the SDK waits for ever, and `abort` from any thread."""

    _answer: requests.Response | None = None
    _aborted = False

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = self.timeout
        self._answer = super().send(request, **kwargs)
        if self._aborted:
            self.abort()
        return self._answer

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
        super().close()

    def abort(self) -> None:
        self._aborted = True
        if self._answer is not None:
            # Shuts the socket down below the reader, which is the only thing that wakes it.
            with contextlib.suppress(OSError, AttributeError):
                CancellableStream(iter(()), self._answer).close()


def _run(client: _Follower, work: Work[T], result: Future[T]) -> None:
    result.set_running_or_notify_cancel()
    try:
        result.set_result(work(client))
    except BaseException as error:  # noqa: BLE001 - raised again in the task that waits
        result.set_exception(error)
    finally:
        client.close()


def words(error: APIError) -> str:
    """What the engine said, without the SDK's HTTP trimmings."""
    said = error.explanation or str(error)
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
