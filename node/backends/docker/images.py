"""Where a container's image comes from: built from a folder, pulled, or already on this machine."""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from docker import APIClient
from docker.auth import INDEX_NAME, resolve_index_name, resolve_repository_name
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils import parse_repository_tag

from node.backends.contract import LINE_CHARACTERS, Progress
from node.backends.docker.engine import Engine, words
from node.backends.docker.plan import CONTAINER, Mark
from node.backends.output import Pace
from node.config import Build, ContainerSpec, Registry
from node.errors import BackendError

PULL_SILENCE_S = 60
"""Longest silence of the engine in a pull."""

BUILD_SILENCE_S = 1800
"""Longest silence of the engine in a build: a step may well compile for minutes without a word."""

ERROR_LINES = 15
"""Lines of output quoted when a build fails."""

CLOSED = ("denied", "unauthorized", "no basic auth credentials")
REFUSED = (*CLOSED, "not found", "unknown", "does not exist", "no matching manifest")
"""Words of a registry that answered: asking again soon does not help. `CLOSED`: it wants an account, or another one."""


class Images:
    """The images of one node's containers.

    `patience_s`: how long a registry may take to begin its answer when the image is on this machine anyway.
    """

    def __init__(self, engine: Engine, *, mark: Mark, registry: Registry | None, patience_s: float) -> None:
        self._engine = engine
        self._mark = mark
        self._registry = registry
        self._patience_s = patience_s
        self._pulled: dict[str, str] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def find(self, spec: ContainerSpec, progress: Progress) -> str:
        """The id of the image to run; `BackendError` says why there is none.

        An image is asked for in its registry once in the life of this object, so that a restart does not wait for it.
        """
        if spec.build is not None:
            return await self._build(spec.id, spec.build, progress)
        if not spec.image:
            raise BackendError(f"container {spec.id}: set `image` or `build`", retry=False)
        async with self._locks[spec.image]:
            known = await self.local(self._pulled.get(spec.image, ""))
            if not known:
                known = self._pulled[spec.image] = await self._fetch(spec.image, progress)
            return known

    async def local(self, image: str) -> str:
        """Its id, or nothing if it is not on this machine."""
        if not image:
            return ""
        try:
            return str((await self._engine.call(lambda client: client.inspect_image(image)))["Id"])
        except ImageNotFound:
            return ""
        except APIError as error:
            raise BackendError(words(error), retry=error.status_code != HTTPStatus.BAD_REQUEST) from error

    async def _fetch(self, image: str, progress: Progress) -> str:
        local = await self.local(image)
        if local and "@" in image:
            return local
        progress(f"pulling image {image}")
        try:
            await self._pull(image, progress, self._patience_s if local else None)
        except (BackendError, APIError) as error:
            reason = words(error) if isinstance(error, APIError) else str(error)
            if not local:
                raise _missing(image, reason) from error
            progress(f"using the image {image} of this machine, for it cannot be pulled: {reason}")
        return await self.local(image)

    async def _pull(self, image: str, progress: Progress, patience_s: float | None) -> None:
        """Pull it. With `patience_s`, give up when the registry has said nothing by then."""
        repository, tag = parse_repository_tag(image)
        account = self._account(repository)
        loop = asyncio.get_running_loop()
        pace = Pace(progress)

        def read(client: APIClient) -> None:
            layers = _Layers(image)
            items = client.pull(repository, tag or "latest", stream=True, decode=True, auth_config=account)
            for item in _checked(items):
                loop.call_soon_threadsafe(answered)
                loop.call_soon_threadsafe(pace, layers.line(item))

        def answered() -> None:
            if not patience.expired():
                patience.reschedule(None)

        try:
            async with asyncio.timeout(patience_s) as patience:
                await self._engine.follow("pull", read, silence_s=PULL_SILENCE_S)
        except TimeoutError:
            raise BackendError(f"its registry did not answer within {patience_s:g} s") from None

    def _account(self, repository: str) -> dict[str, str] | None:
        """The configured account, if it is one of the repository's registry; else the engine user's own is used."""
        try:
            registry, _ = resolve_repository_name(repository)
        except DockerException as error:
            raise BackendError(f"image {repository}: {error}", retry=False) from error
        accounts = self._accounts()
        return accounts.get(registry)

    def _accounts(self) -> dict[str, dict[str, str]]:
        if self._registry is None:
            return {}
        account = {"username": self._registry.username, "password": self._registry.password.get_secret_value()}
        return {resolve_index_name(self._registry.registry or INDEX_NAME): account}

    async def _build(self, container: str, build: Build, progress: Progress) -> str:
        """Build the folder, every time: it is the truth, and the engine's cache makes an unchanged one cheap."""
        if not await self._engine.thread(build.context.is_dir):
            raise BackendError(f"there is no folder {build.context} to build", retry=False)
        progress(f"building {build.context}")
        loop = asyncio.get_running_loop()
        pace = Pace(progress)
        output: deque[str] = deque(maxlen=ERROR_LINES)

        def read(client: APIClient) -> str:
            self._lend_accounts(client)
            image = ""
            for item in _checked(self._built(client, container, build)):
                for line in _lines(item):
                    output.append(line)
                    loop.call_soon_threadsafe(pace, f"building {build.context}: {line}")
                image = item.get("aux", {}).get("ID", image)
            return image

        try:
            image = await self._engine.follow("build", read, silence_s=BUILD_SILENCE_S)
        except APIError as error:
            raise BackendError(f"cannot build {build.context}: {words(error)}") from error
        except (BackendError, OSError) as error:
            raise BackendError("\n".join([f"cannot build {build.context}: {error}", *output])) from error
        await self._forget_former_builds(container)
        return image

    def _built(self, client: APIClient, container: str, build: Build) -> Iterator[dict[str, Any]]:
        return client.build(
            path=str(build.context),
            tag=self._mark.image(container),
            buildargs=build.args,
            labels={CONTAINER: container},
            rm=True,
            forcerm=True,
            decode=True,
        )

    def _lend_accounts(self, client: APIClient) -> None:
        """Let a build pull its base image. The SDK has no argument for it, only what it read from the user's file."""
        for registry, account in self._accounts().items():
            client._auth_configs.add_auth(registry, account)  # type: ignore[attr-defined]

    async def _forget_former_builds(self, container: str) -> None:
        """Remove earlier builds that nothing uses any more: each change of a folder would leave one for ever."""
        unnamed = {"dangling": True, "label": [f"{CONTAINER}={container}"]}
        with contextlib.suppress(APIError, BackendError):
            await self._engine.call(lambda client: client.prune_images(unnamed))


def _missing(image: str, reason: str) -> BackendError:
    hint = ": the account is in the `docker` section" if any(word in reason for word in CLOSED) else ""
    return BackendError(
        f"image {image} is not on this machine and cannot be pulled: {reason}{hint}",
        retry=not any(word in reason for word in REFUSED),
    )


class _Layers:
    """Sums up the layers of one pull."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._bytes: dict[str, tuple[int, int]] = {}

    def line(self, item: dict[str, Any]) -> str:
        """What to tell after this piece of news; nothing if it has none."""
        status, layer, detail = item.get("status", ""), item.get("id", ""), item.get("progressDetail") or {}
        if status == "Downloading":
            self._bytes[layer] = (detail.get("current", 0), detail.get("total", 0))
        elif status in ("Download complete", "Pull complete") and layer in self._bytes:
            self._bytes[layer] = (self._bytes[layer][1],) * 2
        if not self._bytes:
            return ""
        done, total = (sum(sizes) / 1e6 for sizes in zip(*self._bytes.values(), strict=True))
        unpacking = ", unpacking" if status == "Extracting" else ""
        return f"pulling image {self._image}: {done:.0f} of {total:.0f} MB{unpacking}"


def _checked(items: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The news of a pull or a build; the engine tells a failure as one of them."""
    for item in items:
        if "error" in item:
            raise BackendError(str(item["error"]).strip())
        yield item


def _lines(item: dict[str, Any]) -> list[str]:
    text = str(item.get("stream", ""))[: 100 * LINE_CHARACTERS]
    return [line[:LINE_CHARACTERS] for raw in text.splitlines() if (line := raw.strip())]
