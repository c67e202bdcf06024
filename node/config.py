"""The configuration: one frozen object made from one JSON file. An Infernet v1.4 `config.json` is a valid one.

Here lives what a file may say and how a mistake in it is told. What the values do is said by the modules that use them.
"""

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Network = IPv4Network | IPv6Network
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

MIB = 1024 * 1024


class Section(BaseModel):
    """Common manners of every section: frozen, numbers may be strings, unknown keys are kept aside for the warning."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class RateLimit(Section):
    """How many requests one caller may send to one route."""

    num_requests: Count = Field(60, description="Requests per caller and route in one period.")
    period: Seconds = Field(60, description="Length of the period, seconds.")


class Server(Section):
    """The HTTP side."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(4000, description="Port to listen on; 0 takes a free one.")
    insecure: bool = Field(False, description="Serve an address other than loopback although no API keys are set.")
    rate_limit: RateLimit | None = Field(None, description="Limit per caller and route; none when absent.")
    unknown_ids: Literal["404", "omit"] = Field(
        "404",
        description="`GET /api/jobs?id=` when no id is known: `404`, or `omit` for `200 []` as the original node does.",
    )
    status_networks: tuple[Network, ...] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Networks whose hosts may call `PUT /api/status`.",
    )
    max_body_bytes: Bytes = Field(16 * MIB, description="Largest request body; more is answered 413.")
    max_batch_items: Count = Field(10_000, description="Most jobs in one batch; more is answered 413.")
    max_chain: Count = Field(32, description="Most containers in one chain.")


class Redis(Section):
    """A Redis or Valkey server to use instead of the embedded one. Give `url`, or `host` and `port` as Infernet does."""

    url: str = Field("", description="`redis://`, `rediss://` or `unix://` URL; wins over host and port.")
    host: str = Field("redis", description="Host name, when there is no `url`.")
    port: Port = Field(6379, description="Port, when there is no `url`.")
    username: str = Field("", description="ACL user, if not in the URL.")
    password: SecretStr = Field(SecretStr(""), description="Password, if not in the URL.")
    timeout_s: Seconds = Field(2, description="Longest wait for an answer on a request's path; then 503.")


class Embedded(Section):
    """The Valkey server that the node starts itself when there is no `redis` section."""

    fsync: Literal["always", "everysec"] = Field(
        "always", description="When the append-only file is forced to disk: before each answer, or every second."
    )
    max_memory_bytes: int = Field(0, ge=0, description="Memory limit; 0 is none. At the limit submits are refused.")


class Runner(Section):
    """How work is taken and handed back."""

    lease_s: Seconds = Field(30, description="A running step whose node has not renewed it for so long is taken over.")
    reclaim_s: Seconds = Field(5, description="How often expired leases are looked for.")
    max_deliveries: Count = Field(3, description="A step whose worker died so many times fails its job.")
    drain_s: Annotated[float, Field(ge=0)] = Field(
        30, description="Grace for running steps at shutdown; what is not finished then is handed back to the queue."
    )


class Registry(Section):
    """A container registry's account, for pulling images. Infernet's `docker` section."""

    username: str = Field(description="Account name.")
    password: SecretStr = Field(description="Password or token.")
    registry: str = Field("", description="Registry host; Docker Hub when empty.")


class Log(Section):
    """Where the log goes. One JSON object or one console line per event."""

    path: str = Field("", description="File to write as well as standard error; rotated. None when empty.")
    max_file_size: Bytes = Field(2**30, description="Size at which the file is rotated, bytes.")
    backup_count: Annotated[int, Field(ge=0)] = Field(2, description="Rotated files kept.")
    format: Literal["auto", "json", "console"] = Field("auto", description="`auto`: console on a terminal, else JSON.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe event written.")


class Chain(Section):
    """Infernet's on-chain section. It is read so that such a file loads; the chain itself is not supported."""

    enabled: bool = Field(False, description="Must be false.")


class BackendName(StrEnum):
    AUTO = "auto"
    DOCKER = "docker"
    PROCESS = "process"
    REMOTE = "remote"


class Build(Section):
    """A folder with a `Dockerfile`; the process backend runs its `app.py` with its `requirements.txt`."""

    context: Path = Field(description="The folder; relative to the configuration file.")
    args: dict[str, str] = Field(default_factory=dict, description="Build arguments (Docker only).")


class Hardening(Section):
    """What a Docker container may do. Every loosening is explicit, per container."""

    profile: Literal["standard", "strict"] = Field(
        "standard", description="`strict` adds a read-only root, a non-root user and no Internet."
    )
    memory_bytes: Bytes = Field(2048 * MIB, description="Memory limit; swap is not added to it.")
    cpus: Annotated[float, Field(gt=0)] = Field(2, description="Processors it may use.")
    pids: Count = Field(512, description="Processes and threads.")
    cap_add: tuple[str, ...] = Field((), description="Linux capabilities given back after all are dropped.")
    privileges: bool = Field(False, description="Allow gaining privileges (setuid programs).")
    user: str = Field("", description="User to run as; the image's own when empty (strict: 65534).")
    internet: bool | None = Field(None, description="Reach the Internet; by profile when absent.")
    tmpfs_bytes: Bytes = Field(64 * MIB, description="Size of /tmp in the strict profile.")


class ContainerSpec(Section):
    """One service container. Keys up to `generates_proofs` are Infernet's."""

    id: str = Field(description="Name in chains, unique. Letters, digits and `._-`.")
    image: str = Field("", description="Image to run.")
    url: str = Field("", description="Base URL of a service that runs elsewhere; then nothing is started.")
    bearer: SecretStr = Field(SecretStr(""), description="Bearer token sent to `url`.")
    port: Port = Field(0, description="Port on 127.0.0.1 where the service is also published; 0: a free one, if needed.")
    external: bool = Field(True, description="May be the first container of a chain.")
    gpu: bool = Field(False, description="Give it all GPUs.")
    command: str = Field("", description="Command instead of the image's own.")
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables.")
    volumes: tuple[str, ...] = Field((), description="Docker volumes: `host:container[:mode]`.")
    description: str = Field("", description="For `/info`.")
    allowed_ips: tuple[Network, ...] = Field((), description="Addresses and networks that may use it; all when empty.")
    allowed_addresses: tuple[str, ...] = Field((), description="Infernet, on-chain only; not used.")
    allowed_delegate_addresses: tuple[str, ...] = Field((), description="Infernet, on-chain only; not used.")
    accepted_payments: dict[str, int] = Field(default_factory=dict, description="Infernet, on-chain only; not used.")
    generates_proofs: bool = Field(False, description="May be the last of a chain that requires a proof.")
    build: Build | None = Field(None, description="Folder to build instead of an `image`.")
    backend: BackendName = Field(BackendName.AUTO, description="How it is kept running; the node's `backend` by default.")
    concurrency: Count = Field(8, description="Steps that run in it at the same time, per node.")
    timeout_s: Seconds = Field(180, description="Longest time of one step.")
    max_output_bytes: Bytes = Field(32 * MIB, description="Largest reply.")
    startup_timeout_s: Seconds = Field(120, description="Time to answer after its start; then it is restarted.")
    stop_grace_s: Annotated[float, Field(ge=0)] = Field(10, description="Time to stop before it is killed.")
    hardening: Hardening = Field(default_factory=lambda: Hardening(), description="Docker limits and permissions.")


class Config(Section):
    """The whole file."""

    node_id: str = Field("", description="Name of this node in logs and leases; made and kept in `data_dir` if empty.")
    data_dir: Path = Field(Path(".stoker"), description="Where the node keeps its files; relative to the working directory.")
    server: Server = Field(default_factory=lambda: Server())
    redis: Redis | None = Field(None, description="External server; the embedded one when absent.")
    embedded: Embedded = Field(default_factory=lambda: Embedded())
    runner: Runner = Field(default_factory=lambda: Runner())
    backend: Literal["auto", "docker", "process"] = Field(
        "auto", description="`auto`: Docker if its engine answers, else local processes for containers that can."
    )
    docker: Registry | None = Field(None, description="Account for pulling images.")
    log: Log = Field(default_factory=lambda: Log())
    manage_containers: bool = Field(
        True, description="False: containers run elsewhere, at `url` or on 127.0.0.1 at `port`; nothing is started."
    )
    startup_wait: Annotated[float, Field(ge=0)] = Field(
        5, description="Infernet's sleep after starting containers. Not used: readiness is probed."
    )
    forward_stats: bool = Field(False, description="Infernet's telemetry. Not used: nothing is ever sent anywhere.")
    chain: Chain = Field(default_factory=lambda: Chain())
    containers: tuple[ContainerSpec, ...] = Field((), description="The service containers.")

    def container(self, container: str) -> ContainerSpec | None:
        """The spec of a container id."""
        return next((spec for spec in self.containers if spec.id == container), None)


def load(path: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read, expand and check a file. Raises `ConfigError` with one line per fault."""
    raise NotImplementedError
