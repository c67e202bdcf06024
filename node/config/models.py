"""What a configuration file may say: its sections, and for each value its type, limits, default and meaning.

A section describes each value by itself; rules about several values together are in `checks`.
"""

import os
import sys
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from node.config.values import (
    MIB,
    Bytes,
    ContainerId,
    Count,
    Grace,
    Isolation,
    Natural,
    Networks,
    Number,
    Port,
    RedisUrl,
    Seconds,
    SecretText,
    ServiceUrl,
    Text,
    Texts,
    Unused,
    Words,
)


def _cores() -> int:
    """As many workers as there are cores for this process. On one core, or where the system has no way to say so and to
    end workers with their node, none: they would cost, and bring nothing."""
    if sys.platform != "linux":
        return 0
    cores = len(os.sched_getaffinity(0))
    return cores if cores > 1 else 0


class Section(BaseModel):
    """Common manners of every section: frozen, numbers may be strings, unknown keys are left out.

    The dicts in it are not copied for each reader: nobody changes them.
    A value `x_file` beside a value `x` is a file that holds `x`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class RateLimit(Section):
    """How many requests one caller may send to one route, on all nodes of a store together."""

    num_requests: Count = Field(60, description="Requests per caller and route in one period.")
    period: Seconds = Field(60, description="Length of the period, in whole seconds.")


class Server(Section):
    """The HTTP side."""

    host: Text = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(4000, description="Port to listen on; 0 takes a free one.")
    workers: Natural | None = Field(
        None,
        description="Processes beside the main one that answer requests; 0: the main process does. When absent: as "
        "many as there are cores that the node may use, none on a single core.",
    )
    insecure: bool = Field(
        False,
        description="Serve an address that others can reach without any API key. Once there is one, it is needed.",
    )
    require_keys: bool = Field(
        False, description="An API key is needed, whatever the address, and whether or not there is one in the store."
    )
    trusted_proxies: Networks = Field(
        (), description="Networks of the reverse proxies whose `X-Forwarded-For` is believed; nobody's when empty."
    )
    rate_limit: RateLimit | None = Field(None, description="Limit per caller and route; none when absent.")
    unknown_ids: Literal["404", "omit"] = Field(
        "404",
        description="`GET /api/jobs?id=` when no id is known: `404`, or `omit` for `200 []` as the original node does.",
    )
    status_networks: Networks = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Networks whose hosts may call `PUT /api/status`.",
    )
    tls_cert: Path | None = Field(
        None,
        description="Certificate, with those between it and the root (PEM); relative to the working directory. "
        "Then only HTTPS is served, of version 1.2 or later.",
    )
    tls_key: Path | None = Field(None, description="Private key of `tls_cert` (PEM, without a password).")
    allowed_hosts: tuple[Text, ...] | None = Field(
        None,
        description="Names by which a caller without a key may ask (the `Host` header), besides `host` and loopback; "
        '`"*"` for any. When absent: any if other machines can reach the node, else none.',
    )
    request_timeout_s: Seconds = Field(
        10,
        description="Time for a request to come whole, and for a client to go on reading its answer; a second more "
        "for each 16 KiB of a body. Then 408 and the end of the connection.",
    )
    max_connections: Count = Field(
        4096,
        description="Most connections at once; one more is answered 503. The limit of open files may make it less. "
        "Each worker has its part of them.",
    )
    max_streams: Count = Field(
        1000, description="Most streams at once, waiting ones included; one more is answered 503."
    )
    max_streams_per_caller: Count = Field(
        32,
        description="Most streams of one caller at once; one more is answered 429. They get half of a container's "
        "slots, rounded up.",
    )
    max_body_bytes: Bytes = Field(16 * MIB, description="Largest request body; more is answered 413.")
    max_bodies_bytes: Bytes = Field(
        256 * MIB,
        description="Most bytes of bodies that are on their way or worked on, those up to 64 KiB aside; more: 503. "
        "Each worker has its part, but at least `max_body_bytes`.",
    )
    max_answer_bytes: Bytes = Field(
        64 * MIB, description="Most bytes of outputs in the results that one request asks for; more is answered 413."
    )
    max_batch_items: Count = Field(10_000, description="Most jobs in one batch; more is answered 413.")
    max_chain: Count = Field(32, description="Most containers in one chain.")
    max_pending: Count = Field(
        100_000, description="Most jobs of one caller that have not ended; a submit beyond is answered 429."
    )
    fair_share: Natural = Field(
        100, description="Jobs of one caller that have not ended, from which on its further ones queue behind others'."
    )
    idempotency_s: Count = Field(86_400, description="How long an `Idempotency-Key` is remembered.")

    @property
    def processes(self) -> int:
        """How many workers there are."""
        return _cores() if self.workers is None else self.workers

    @property
    def reachable(self) -> bool:
        """Whether other machines can connect. Only `localhost` and literal loopback addresses are certainly closed."""
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"


class Redis(Section):
    """A Redis or Valkey server to use instead of the embedded one: by `url`, or by `host` and `port` as Infernet."""

    url: RedisUrl = Field("", description="URL of the server; wins over `host` and `port`.", repr=False)
    url_file: Path | None = Field(None, description="File that holds `url`.")
    host: Text = Field("redis", description="Host name, when there is no `url`.")
    port: Port = Field(6379, description="Port, when there is no `url`.")
    username: str = Field("", description="ACL user, if not in the URL.")
    password: SecretStr = Field(SecretStr(""), description="Password, if not in the URL.")
    password_file: Path | None = Field(None, description="File that holds `password`.")
    timeout_s: Seconds = Field(2, description="Longest wait for an answer on a request's path; then 503.")
    min_replicas: Natural = Field(
        0, description="Replicas that must have a job before it is answered with an id: for failover without loss."
    )


class Embedded(Section):
    """The Valkey server that the node starts itself when there is no `redis` section."""

    fsync: Literal["always", "everysec"] = Field(
        "always", description="When the append-only file is forced to disk: before each answer, or every second."
    )
    max_memory_bytes: Natural = Field(
        0,
        description="Memory limit; 0 is half of the machine's memory, or of the control group's limit. At the limit "
        "submits are refused, and running jobs still finish.",
    )
    reserve_bytes: Natural = Field(
        64 * MIB,
        description="Free disk space below which submits are refused, so that running jobs can still finish: the "
        "server ends when it cannot write.",
    )


class Runner(Section):
    """How work is taken and handed back."""

    workers: Natural | None = Field(
        None,
        description="Processes beside the main one that run steps; 0: the main process does. When absent: as many as "
        "there are cores that the node may use, none on a single core. They share out each container's `concurrency`.",
    )
    lease_s: Seconds = Field(30, description="A running step whose node has not renewed it for so long is taken over.")
    reclaim_s: Seconds = Field(5, description="How often expired leases are looked for.")
    max_deliveries: Count = Field(3, description="A step whose worker died so many times fails its job.")
    check_s: Seconds = Field(
        60, description="How often each live job is looked at: is it overdue, has it lost its place."
    )
    gone_s: Seconds = Field(
        300,
        description="A node not heard of for so long counts as gone: its streams end, and jobs fail that wait for a "
        "container which no other node has. More than twice `reclaim_s`.",
    )
    queue_timeout_s: Seconds = Field(86_400, description="Longest wait of a step in its queue; then the job fails.")
    job_timeout_s: Seconds = Field(
        172_800, description="Longest time from a job's acceptance to its end; then it fails."
    )
    drain_s: Grace = Field(
        30, description="Grace for running steps at shutdown; what is not finished then is handed back to the queue."
    )

    @property
    def processes(self) -> int:
        """How many workers there are."""
        return _cores() if self.workers is None else self.workers


class Retention(Section):
    """How long ended jobs are kept, with their results. Then they are unknown to every request."""

    succeeded: Seconds = Field(86_400, description="Seconds after the end.")
    failed: Seconds = Field(604_800, description="Seconds after the end.")
    cancelled: Seconds = Field(86_400, description="Seconds after the end.")


class Registry(Section):
    """A container registry's account, for pulling images. Infernet's `docker` section."""

    username: Text = Field(description="Account name.")
    password: SecretText = Field(description="Password or token.")
    password_file: Path | None = Field(None, description="File that holds `password`.")
    registry: str = Field("", description="Registry host; Docker Hub when empty.")


class Log(Section):
    """Where the log goes. One JSON object or one console line per event."""

    path: str = Field("", description="File to write as well as standard error; rotated. None when empty.")
    max_file_size: Bytes = Field(2**30, description="Size at which the file is rotated, bytes.")
    backup_count: Natural = Field(2, description="Rotated files kept.")
    format: Literal["auto", "json", "console"] = Field("auto", description="`auto`: console on a terminal, else JSON.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe event written.")


class Chain(Section):
    """Infernet's on-chain section. It is read so that such a file loads; the chain itself is not supported."""

    enabled: bool = Field(False, description="Must be false. The section's other keys are not used.")


class BackendName(StrEnum):
    AUTO = "auto"
    DOCKER = "docker"
    PROCESS = "process"
    REMOTE = "remote"


class Build(Section):
    """A folder with a `Dockerfile`; the process backend runs its `app.py` with its `requirements.txt`."""

    context: Annotated[Path, Words("a folder that exists, seen from the configuration file")] = Field(
        description="The folder; relative to the configuration file."
    )
    args: Texts = Field(default_factory=dict, description="Build arguments (Docker only).")

    @model_validator(mode="before")
    @classmethod
    def _folder_alone(cls, value: Any) -> Any:
        return {"context": value} if isinstance(value, str) else value

    @field_validator("context")
    @classmethod
    def _existing(cls, context: Path, info: ValidationInfo) -> Path:
        """`info.context` is the configuration file's folder; without one, the path is taken as it is."""
        if info.context is None:
            return context
        folder: Path = (info.context / context).resolve()
        if not folder.is_dir():
            raise ValueError("no such folder")
        return folder


class Hardening(Section):
    """What a Docker container may do. Every loosening is explicit, per container."""

    profile: Literal["standard", "strict"] = Field(
        "standard", description="`strict` adds a read-only root, a non-root user and no Internet."
    )
    memory_bytes: Annotated[
        int, Number, Field(ge=6 * MIB), Words("a number of bytes, 6 MiB (6291456) or more: Docker refuses less")
    ] = Field(2048 * MIB, description="Memory limit; swap is not added to it.")
    cpus: Annotated[float, Number, Field(gt=0, allow_inf_nan=False), Words("a number, more than 0")] = Field(
        2, description="Processors it may use."
    )
    pids: Count = Field(512, description="Processes and threads.")
    cap_add: tuple[str, ...] = Field((), description="Linux capabilities given back after all are dropped.")
    privileges: bool = Field(False, description="Allow gaining privileges (setuid programs).")
    privileged: bool = Field(
        False, description="Docker's `--privileged`: the container owns the host. Only where `docker_allow` has it."
    )
    host_network: bool = Field(
        False,
        description="No network of its own: it must listen on port 3000 of this host, and reaches all that the host "
        "does. Only where `docker_allow` has it.",
    )
    user: str = Field("", description="User to run as; the image's own when empty (strict: 65534).")
    internet: bool | None = Field(None, description="Reach the Internet; by profile when absent.")
    read_only: bool | None = Field(
        None, description="Read-only root, with only `/tmp` to write to; by profile when absent (strict: true)."
    )
    tmpfs_bytes: Bytes = Field(64 * MIB, description="Size of `/tmp` beside a read-only root; it counts as memory.")

    @property
    def reaches_internet(self) -> bool:
        return self.profile == "standard" if self.internet is None else self.internet

    @property
    def rootfs_read_only(self) -> bool:
        return self.profile == "strict" if self.read_only is None else self.read_only

    @property
    def loosened(self) -> tuple[str, ...]:
        """Each setting by which the container may do more than its profile lets it, as `name` or `name: value`."""
        strict = self.profile == "strict"
        found = {
            "privileged": self.privileged,
            "host_network": self.host_network,
            f"cap_add: {', '.join(self.cap_add)}": bool(self.cap_add),
            "privileges": self.privileges,
            "internet": strict and self.reaches_internet,
            "read_only: false": strict and not self.rootfs_read_only,
            f"user: {self.user}": strict and self.user.partition(":")[0] in ("0", "root"),
        }
        return tuple(f"hardening.{name}" for name, loose in found.items() if loose)


class ContainerSpec(Section):
    """One service container: an `image`, a folder to `build`, or the `url` of a service that runs elsewhere."""

    id: ContainerId = Field(description="Name in chains, unique.")
    image: str = Field("", description="Image to run.")
    url: ServiceUrl = Field("", description="Base URL of a service that runs elsewhere; then nothing is started.")
    bearer: SecretStr = Field(SecretStr(""), description="Bearer token sent to `url`.")
    bearer_file: Path | None = Field(None, description="File that holds `bearer`.")
    port: Port = Field(
        0, description="Port on 127.0.0.1 where the service is also published; 0: a free one, if needed."
    )
    external: bool = Field(True, description="May be the first container of a chain.")
    gpu: bool = Field(False, description="Give it all GPUs.")
    command: str = Field("", description="Command instead of the image's own.")
    env: Texts = Field(default_factory=dict, description="Environment variables.")
    volumes: tuple[str, ...] = Field((), description="Docker volumes: `host:container[:mode]`.")
    description: str = Field("", description="For `/info`.")
    allowed_ips: Networks = Field((), description="Addresses and networks that may use it; all when empty.")
    allowed_addresses: Unused[tuple[str, ...]] = Field((), description="Infernet's on-chain rule.")
    allowed_delegate_addresses: Unused[tuple[str, ...]] = Field((), description="Infernet's on-chain rule.")
    accepted_payments: Unused[dict[str, int]] = Field(default_factory=dict, description="Infernet's on-chain prices.")
    generates_proofs: bool = Field(False, description="May be the last of a chain that requires a proof.")
    build: Build | None = Field(None, description="Folder to build instead of an `image`; text alone is its `context`.")
    backend: BackendName = Field(
        BackendName.AUTO, description="How it is kept running; the node's `backend` by default."
    )
    concurrency: Count = Field(8, description="Steps that run in it at the same time, per node.")
    max_queued: Count = Field(
        1_000_000, description="Most steps that wait for it or run in it; a submit beyond is answered 503."
    )
    timeout_s: Seconds = Field(180, description="Longest time of one step.")
    retries: Annotated[int, Number, Field(ge=0), Words("a whole number, 0 or more")] = Field(
        2, description="How often a call is repeated that was refused, cut off before a reply, or answered 502 to 504."
    )
    idempotent: bool = Field(False, description="A call may also be repeated after a timeout.")
    max_output_bytes: Bytes = Field(32 * MIB, description="Largest reply.")
    startup_timeout_s: Seconds = Field(120, description="Time to answer after its start; then it is restarted.")
    stop_grace_s: Grace = Field(10, description="Time to stop before it is killed.")
    hardening: Hardening = Field(default_factory=lambda: Hardening(), description="Docker limits and permissions.")


class Config(Section):
    """The whole file."""

    node_id: str = Field("", description="Name of this node in logs and leases; made and kept in `data_dir` if empty.")
    data_dir: Path = Field(
        Path(".stoker"), description="Where the node keeps its files; relative to the working directory."
    )
    server: Server = Field(default_factory=lambda: Server(), description="The HTTP side.")
    redis: Redis | None = Field(None, description="External server; the embedded one when absent.")
    embedded: Embedded = Field(default_factory=lambda: Embedded(), description="The embedded server.")
    runner: Runner = Field(default_factory=lambda: Runner(), description="How work is taken and handed back.")
    retention_s: Retention = Field(default_factory=lambda: Retention(), description="How long ended jobs are kept.")
    backend: Literal["auto", "docker", "process"] = Field(
        "auto", description="`auto`: Docker if its engine answers, else local processes for containers that can."
    )
    base_image: str = Field("", description="Build argument `BASE_IMAGE` of every `build` whose `args` have none.")
    docker_allow: tuple[Literal["privileged", "host_network"], ...] = Field(
        (), description="What containers of this node may ask for in `hardening` although it hands over the host."
    )
    docker_isolation: Isolation = Field(
        "auto",
        description="Packet filter rules that cut containers off from this host and from link-local addresses: `auto` "
        "sets them, and warns where it may not; `require` starts no container without; `manual` leaves them to you "
        "(docs/isolation.md).",
    )
    docker: Registry | None = Field(None, description="Account for pulling images; none when its values are empty.")
    log: Log = Field(default_factory=lambda: Log(), description="Where the log goes.")
    manage_containers: bool = Field(
        True, description="False: containers run elsewhere, at `url` or on 127.0.0.1 at `port`; nothing is started."
    )
    startup_wait: Unused[Grace] = Field(
        5, description="Infernet's sleep after starting containers; here readiness is probed."
    )
    forward_stats: Unused[bool] = Field(False, description="Infernet's telemetry; nothing is ever sent anywhere.")
    chain: Chain = Field(default_factory=lambda: Chain(), description="Infernet's on-chain section.")
    containers: tuple[ContainerSpec, ...] = Field((), description="The service containers.")

    @field_validator("docker", mode="before")
    @classmethod
    def _account(cls, value: Any) -> Any:
        """Infernet's samples carry the section with an empty password; that is no account."""
        if not isinstance(value, dict):
            return value
        without = value.get("password") == "" and not value.get("password_file")
        return None if without or not any(value.values()) else value

    @model_validator(mode="before")
    @classmethod
    def _base_image(cls, value: Any) -> Any:
        """Hand `base_image` on to the builds, so that whoever has a container's spec has all of it."""
        if not isinstance(value, dict) or not isinstance(value.get("base_image"), str) or not value["base_image"]:
            return value
        containers = value.get("containers")
        if not isinstance(containers, list):
            return value
        return value | {"containers": [_with_base(each, value["base_image"]) for each in containers]}


def _with_base(container: Any, base_image: str) -> Any:
    if not isinstance(container, dict) or not container.get("build"):
        return container
    build = container["build"]
    build = {"context": build} if isinstance(build, str) else build
    if not isinstance(build, dict) or not isinstance(build.get("args", {}), dict):
        return container
    return container | {"build": build | {"args": {"BASE_IMAGE": base_image} | build.get("args", {})}}
