"""Brings containers up in a Docker engine, adopts what an earlier life of the node left there, takes them down."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from docker import APIClient
from docker.errors import APIError, NotFound

from node.backends.contract import Instance, Progress
from node.backends.docker.engine import CALL_S, FAULTS, Engine, words
from node.backends.docker.images import Images
from node.backends.docker.networks import Networks
from node.backends.docker.plan import CONTAINER, HASH, HOST, NODE, PORT, Mark, Network, Plan, plan, refuse_mounts
from node.backends.docker.watch import Watch, out_of_memory
from node.backends.output import tail
from node.config import ContainerSpec, Isolation, Registry
from node.errors import BackendError

SWEEP_GRACE_S = 10.0

STOPPED = "stopped.invalid"
"""Host of a container that has no address any more; the top-level name is reserved never to exist."""


class DockerBackend:
    """A `Backend` on a Docker engine: `base_url`, or what `DOCKER_HOST` and its companions say, or the usual socket.

    What it makes is named `<prefix>-<node_id>-<container id>` and labelled; what lacks the labels is never touched.
    `registry` is an account for pulling. `isolation` is the setting `docker_isolation`. `pull_patience_s` bounds the
    wait for a registry that does not answer, when the image is on this machine. `drifted` is called for each
    container that is not as configured, and replaced.
    """

    def __init__(
        self,
        *,
        node_id: str,
        registry: Registry | None = None,
        isolation: Isolation = "auto",
        prefix: str = "stoker",
        base_url: str = "",
        pull_patience_s: float = 10.0,
        call_s: int = CALL_S,
        drifted: Callable[[], None] = lambda: None,
    ) -> None:
        self._mark = Mark(node_id=node_id, prefix=prefix)
        self._engine = Engine(base_url=base_url, call_s=call_s)
        self._images = Images(self._engine, mark=self._mark, registry=registry, patience_s=pull_patience_s)
        self._networks = Networks(self._engine, self._mark, isolation)
        self._watch = Watch(self._engine, self._mark)
        self._drifted = drifted
        self._cpus = 0
        self._machine = ""

    async def __aenter__(self) -> Self:
        await self._engine.__aenter__()
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._watching = [
            self._tasks.create_task(self._watch.listen(), name="docker-listen"),
            self._tasks.create_task(self._watch.look(), name="docker-look"),
            self._tasks.create_task(self._networks.hold(), name="docker-rules"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Containers run on, for the next life of the node to adopt; who wants them stopped stops them first."""
        for task in self._watching:
            task.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
            await self._networks.leave()
        finally:
            await self._engine.__aexit__(kind, error, trace)

    async def probe(self) -> str:
        """The engine's version; `BackendError` says why there is none to be used."""
        try:
            return str((await self._engine.call(lambda client: client.version()))["Version"])
        except APIError as error:
            raise BackendError(f"the Docker engine at {self._engine.address} is no use: {words(error)}") from error

    async def has(self, image: str) -> bool:
        """Whether the image is on this machine."""
        return bool(await self._images.local(image))

    async def isolation(self) -> str:
        """Nothing if this node may set the rules that cut containers off from this host, else why not, in words."""
        return await self._networks.isolation()

    @property
    def open_because(self) -> str:
        """Nothing while containers are cut off from this host by rules, else why they are not, in words."""
        return self._networks.open_because

    async def start(self, spec: ContainerSpec, progress: Progress) -> Instance:
        try:
            return await self._start(spec, progress)
        except APIError as error:
            # 400 is about what was asked; it will be answered the same way until the configuration changes.
            raise BackendError(f"container {spec.id}: {words(error)}", retry=error.status_code != 400) from error

    async def sweep(self, known: Collection[str]) -> list[str]:
        label = f"{NODE}={self._mark.node_id}"
        try:
            listed = await self._engine.call(lambda client: client.containers(all=True, filters={"label": label}))
            orphans = [each for each in listed if each["Labels"].get(CONTAINER) not in known]
            await asyncio.gather(*(_remove(self._engine, each["Id"], SWEEP_GRACE_S) for each in orphans))
            await self._networks.remove()
        except APIError as error:
            raise BackendError(f"cannot remove containers of an earlier life: {words(error)}") from error
        return [f"container {each['Names'][0].removeprefix('/')}" for each in orphans]

    async def _start(self, spec: ContainerSpec, progress: Progress) -> Instance:
        await self._engine.thread(partial(refuse_mounts, spec, self._engine.address))
        await self._found(spec)
        image = await self._images.find(spec, progress)
        stranger = await self._stranger(image)
        if stranger:
            progress(f"container {spec.id}: {stranger}")
        network = await self._network(spec)
        planned = plan(spec, mark=self._mark, image=image, network=network, cpus=await self._processors())
        found = await self._found(spec)
        if found is not None:
            same = found["Config"]["Labels"].get(HASH) == planned.hash and _is_on(found, network)
            if same and found["State"]["Running"]:
                progress(f"adopting container {planned.name}")
                return self._instance(spec, found, network, stranger)
            progress(f"replacing container {planned.name}")
            self._drifted()
            await _remove(self._engine, found["Id"], spec.stop_grace_s)
        return self._instance(spec, await self._bring_up(spec, planned, progress), network, stranger)

    async def _network(self, spec: ContainerSpec) -> Network:
        if spec.hardening.host_network:
            return await self._networks.host()
        return await self._networks.get(internet=spec.hardening.reaches_internet)

    async def _found(self, spec: ContainerSpec) -> dict[str, Any] | None:
        """What the engine has under the container's name; `BackendError` if it is somebody else's."""
        name = self._mark.name(spec.id)
        try:
            found: dict[str, Any] = await self._engine.call(lambda client: client.inspect_container(name))
        except NotFound:
            return None
        if not self._mark.is_on(found["Config"]["Labels"], spec.id):
            raise BackendError(
                f"container {spec.id}: there is a Docker container {name} that this node did not make and does not "
                f"touch: remove it (docker rm -f {name}), rename it, or change `node_id`",
                retry=False,
            )
        return found

    async def _stranger(self, image: str) -> str:
        """That the image is for another kind of machine than the engine's, which may work there by emulation only."""
        if not self._machine:
            self._machine = (await self._engine.call(lambda client: client.version()))["Arch"]
        made_for = (await self._engine.call(lambda client: client.inspect_image(image))).get("Architecture")
        differs = made_for and made_for != self._machine
        return f"its image is for {made_for}, and this machine is {self._machine}" if differs else ""

    async def _processors(self) -> int:
        if not self._cpus:
            self._cpus = (await self._engine.call(lambda client: client.info()))["NCPU"]
        return self._cpus

    async def _bring_up(self, spec: ContainerSpec, planned: Plan, progress: Progress) -> dict[str, Any]:
        made = asyncio.ensure_future(self._engine.call(partial(_create, planned=planned)))
        try:
            found, warnings = await asyncio.shield(made)
        except asyncio.CancelledError:
            # The thread goes on whatever we do: wait for it, and leave nothing behind.
            await asyncio.wait([made])
            if made.exception() is None:
                await _remove(self._engine, made.result()[0]["Id"], 0)
            raise
        except APIError as error:
            raise _explained(spec, error) from error
        for warning in warnings:
            progress(f"container {planned.name}: {warning}")
        return found

    def _instance(
        self, spec: ContainerSpec, found: dict[str, Any], network: Network, stranger: str
    ) -> "DockerInstance":
        container = found["Id"]
        return DockerInstance(
            engine=self._engine,
            watch=self._watch,
            container=container,
            url=_url(found["NetworkSettings"], network),
            loosened=partial(self._loosened, spec),
            stranger=stranger,
            memory_bytes=spec.hardening.memory_bytes,
        )

    def _loosened(self, spec: ContainerSpec) -> tuple[str, ...]:
        reach = () if spec.hardening.host_network or not self.open_because else (self.open_because,)
        return spec.hardening.loosened + tuple(f"not cut off: {why}" for why in reach)


class DockerInstance:
    """A running container, by its engine id: one that was made anew under the same name is another instance."""

    def __init__(
        self,
        *,
        engine: Engine,
        watch: Watch,
        container: str,
        url: str,
        loosened: Callable[[], tuple[str, ...]],
        stranger: str,
        memory_bytes: int,
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._container = container
        self._url = url
        self._loosened = loosened
        self._stranger = stranger
        self._memory_bytes = memory_bytes
        self._exit = watch.add(container)

    @property
    def url(self) -> str:
        return self._url

    @property
    def loosened(self) -> tuple[str, ...]:
        return self._loosened()

    async def exited(self) -> str:
        reason = await asyncio.shield(self._exit)
        return f"{reason}: {self._stranger}" if self._stranger else reason

    async def mishap(self) -> str:
        if not await self._watch.was_out_of_memory(self._container):
            return ""
        return f"a process in it was {out_of_memory(self._memory_bytes)}"

    async def log_tail(self, lines: int) -> list[str]:
        if lines <= 0:
            return []
        try:
            output = await self._engine.call(lambda client: client.logs(self._container, tail=lines))
        except (APIError, BackendError):
            return []
        return tail(output, lines)

    async def stop(self, grace_s: float) -> None:
        try:
            await _remove(self._engine, self._container, grace_s)
        except APIError as error:
            raise BackendError(f"cannot remove the container: {words(error)}") from error
        self._watch.forget(self._container, "stopped")


def _create(client: APIClient, planned: Plan) -> tuple[dict[str, Any], list[str]]:
    """Create and start a container: what the engine then says of it, and its warnings. All or nothing."""
    made = client.create_container(
        name=planned.name,
        labels=planned.labels | {HASH: planned.hash},
        host_config=client.create_host_config(**planned.host),
        **planned.config,
    )
    try:
        client.start(made["Id"])
        return client.inspect_container(made["Id"]), made.get("Warnings") or []
    except BaseException:
        # A start that failed leaves the container behind as `created`, and with it the name.
        with contextlib.suppress(*FAULTS):
            client.remove_container(made["Id"], force=True, v=True)
        raise


async def _remove(engine: Engine, container: str, grace_s: float) -> None:
    """Stop and remove. Already stopped, gone, or being removed is as good."""
    wait_s = math.ceil(grace_s)

    def work(client: APIClient) -> None:
        with contextlib.suppress(APIError):
            client.stop(container, timeout=wait_s)
        try:
            client.remove_container(container, force=True, v=True)
        except APIError as error:
            if error.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    await engine.call(work, extra_s=wait_s)


def _is_on(found: dict[str, Any], network: Network) -> bool:
    """Whether a container is on this very network, and not on one of the same name that is gone."""
    settings = found["NetworkSettings"]["Networks"].get(network.name, {})
    return network.name == HOST or settings.get("NetworkID") == network.id


def _url(settings: dict[str, Any], network: Network) -> str:
    """Where the node reaches the service; a name that leads nowhere for one that has already stopped."""
    if network.name == HOST:
        return f"http://127.0.0.1:{PORT}"
    if network.direct:
        address = settings["Networks"].get(network.name, {}).get("IPAddress") or STOPPED
        return f"http://{address}:{PORT}"
    published = (settings["Ports"] or {}).get(f"{PORT}/tcp") or [{"HostIp": STOPPED, "HostPort": PORT}]
    return f"http://{published[0]['HostIp']}:{published[0]['HostPort']}"


def _explained(spec: ContainerSpec, error: APIError) -> Exception:
    """The engine's refusal to start, with what to do about it where that is known."""
    said = words(error)
    if "port is already allocated" in said or "address already in use" in said:
        return BackendError(
            f"container {spec.id}: port {spec.port} on 127.0.0.1 is taken: free it, choose another `port`, or leave "
            "`port` out, for the node does not need it"
        )
    if "could not select device driver" in said:
        return BackendError(
            f"container {spec.id}: the Docker engine cannot give it a GPU: install the NVIDIA container toolkit, or "
            "set `gpu` to false",
            retry=False,
        )
    return error
