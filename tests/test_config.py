"""A configuration file means what its author expects, and every mistake in it is told in one line."""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from node.config import MIB, BackendName, Config, Loaded, find, load
from node.config.faults import MASK, masked
from node.errors import ConfigError

Write = Callable[[Any], Path]

# Every key that an Infernet v1.4 node reads, numbers as strings where its samples have them.
INFERNET = {
    "log": {"path": "infernet_node.log", "max_file_size": "1073741824", "backup_count": "2"},
    "manage_containers": True,
    "startup_wait": "1.0",
    "forward_stats": True,
    "server": {"port": "4000", "rate_limit": {"num_requests": "100", "period": "60"}},
    "redis": {"host": "redis", "port": "6379"},
    "docker": {"username": "someone", "password": "hush"},
    "chain": {
        "enabled": False,
        "rpc_url": "http://chain.example:8545",
        "trail_head_blocks": "0",
        "registry_address": "0x0000000000000000000000000000000000000001",
        "wallet": {
            "max_gas_limit": "4000000",
            "private_key": "0x01",
            "payment_address": None,
            "allowed_sim_errors": ["not enough balance"],
        },
        "snapshot_sync": {"sleep": 1.5, "batch_size": 200, "starting_sub_id": 0, "sync_period": "0.5"},
    },
    "containers": [
        {
            "id": "hello-world",
            "image": "ritualnetwork/hello-world-infernet:latest",
            "url": "",
            "bearer": "",
            "port": "3000",
            "external": "true",
            "gpu": "false",
            "command": "--bind=0.0.0.0:3000 --workers=2",
            "env": {"MODEL": "tiny", "WORKERS": 2},
            "volumes": ["data:/data:ro"],
            "description": "says hello",
            "allowed_ips": ["10.1.2.3/8", "::1"],
            "allowed_addresses": ["0x02"],
            "allowed_delegate_addresses": [],
            "accepted_payments": {"0x0000000000000000000000000000000000000000": "1000000000000000000"},
            "generates_proofs": False,
        }
    ],
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration, as text or as the object to be written; only its owner may read it."""

    def put(content: Any) -> Path:
        file = tmp_path / "config.json"
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_text(text, "utf-8")
        file.chmod(0o600)
        return file

    return put


def faults_of(file: Path, environ: dict[str, str] | None = None) -> list[str]:
    """The faults, without the file's name that each one starts with."""
    with pytest.raises(ConfigError) as caught:
        load(file, environ=environ or {})
    lines = str(caught.value).splitlines()
    assert tuple(lines) == caught.value.faults
    assert all(line.startswith(f"{file}: ") for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


def warnings_of(loaded: Loaded, file: Path) -> list[str]:
    assert all(line.startswith(f"{file}: ") for line in loaded.warnings)
    return [line.removeprefix(f"{file}: ") for line in loaded.warnings]


# --- which file ---


@pytest.mark.parametrize(
    ("given_name", "environ", "expected"),
    [
        ("a", {"STOKER_CONFIG": "b", "INFERNET_CONFIG_PATH": "c"}, "a"),
        (None, {"STOKER_CONFIG": "b", "INFERNET_CONFIG_PATH": "c"}, "b"),
        (None, {"STOKER_CONFIG": "", "INFERNET_CONFIG_PATH": "c"}, "c"),
        (None, {}, "config.json"),
    ],
)
def test_the_first_place_that_names_a_file_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given_name: str | None,
    environ: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "config.json"):
        Path(name).touch()
    assert find(Path(given_name) if given_name else None, environ) == Path(expected)


def test_a_named_file_that_is_missing_is_not_replaced_by_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").touch()
    with pytest.raises(ConfigError) as caught:
        find(None, {"STOKER_CONFIG": "b"})
    assert caught.value.faults == (
        "b: found no file, expected the configuration (command line: not given, STOKER_CONFIG: b, "
        "INFERNET_CONFIG_PATH: not given, the default: config.json)",
    )


# --- what is in it ---


def test_an_empty_object_is_a_configuration(write: Write) -> None:
    loaded = load(write({}), environ={})
    assert loaded == Loaded(config=Config(), warnings=())
    assert loaded.config.redis is None
    assert loaded.config.server.host == "127.0.0.1"


def test_a_byte_order_mark_is_no_mistake(write: Write) -> None:
    assert load(write('\ufeff{"node_id": "é"}')).config.node_id == "é"


def test_a_complete_infernet_file_loads_unchanged(write: Write) -> None:
    file = write(INFERNET)
    loaded = load(file, environ={})
    config, spec = loaded.config, loaded.config.containers[0]
    assert (config.server.port, config.startup_wait, config.log.max_file_size) == (4000, 1.0, 2**30)
    assert config.server.rate_limit is not None
    assert (config.server.rate_limit.num_requests, config.server.rate_limit.period) == (100, 60)
    assert config.redis is not None
    assert (config.redis.host, config.redis.port) == ("redis", 6379)
    assert config.docker is not None
    assert config.docker.password.get_secret_value() == "hush"
    assert (spec.id, spec.image, spec.port) == ("hello-world", "ritualnetwork/hello-world-infernet:latest", 3000)
    assert (spec.external, spec.gpu, spec.env) == (True, False, {"MODEL": "tiny", "WORKERS": "2"})
    assert spec.allowed_ips == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert warnings_of(loaded, file) == [
        "startup_wait: not used: Infernet's sleep after starting containers; here readiness is probed",
        "forward_stats: not used: Infernet's telemetry; nothing is ever sent anywhere",
        "chain.rpc_url: not used: on-chain work is not supported",
        "chain.trail_head_blocks: not used: on-chain work is not supported",
        "chain.registry_address: not used: on-chain work is not supported",
        "chain.wallet: not used: on-chain work is not supported",
        "chain.snapshot_sync: not used: on-chain work is not supported",
        "containers[0].allowed_addresses: not used: Infernet's on-chain rule",
        "containers[0].accepted_payments: not used: Infernet's on-chain prices",
    ]


@pytest.mark.parametrize("section", [None, {"username": "", "password": ""}, {"username": None, "password": None}, {}])
def test_an_account_without_values_is_none(write: Write, section: object) -> None:
    assert load(write({"docker": section})).config.docker is None


def test_null_is_the_same_as_not_given(write: Write) -> None:
    nulls = {"id": "a", "image": "i", "url": None, "bearer": None, "port": None, "build": None, "hardening": None}
    tree = {"server": {"port": None, "rate_limit": None}, "redis": None, "chain": None, "containers": [nulls]}
    plain = {"containers": [{"id": "a", "image": "i"}]}
    assert load(write(tree)) == load(write(plain))


def test_overrides_win_over_the_file_and_its_mistakes(write: Write, tmp_path: Path) -> None:
    file = write({"server": {"port": "${NOPE}"}, "redis": {"url_file": "missing"}})
    overrides = {
        "server.port": 4001,
        "server.host": None,
        "data_dir": tmp_path,
        "redis.url": "redis://h",
        "log.level": "debug",
    }
    config = load(file, overrides, environ={}).config
    assert (config.server.port, config.server.host, config.data_dir) == (4001, "127.0.0.1", tmp_path)
    assert config.redis is not None
    assert (config.redis.url, config.log.level) == ("redis://h", "debug")


def test_an_override_of_none_leaves_the_file_alone(write: Write) -> None:
    assert load(write({}), {"redis.url": None, "server.port": None}) == load(write({}))


def test_an_override_is_checked_as_the_file_is(write: Write) -> None:
    file = write({})
    with pytest.raises(ConfigError) as caught:
        load(file, {"server.port": 70000})
    assert caught.value.faults == (f"{file}: server.port: found 70000, expected a port, 0 to 65535",)


def test_a_build_folder_is_seen_from_the_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    file = write({"containers": [{"id": "a", "build": {"context": "app", "args": {"N": 1}}}]})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    build = load(Path("..") / file.name).config.containers[0].build
    assert build is not None
    assert (build.context, build.args) == (tmp_path / "app", {"N": "1"})
    monkeypatch.chdir(tmp_path)
    bare = load(Path(file.name)).config.containers[0].build
    assert bare == build


def test_a_base_image_is_handed_to_every_build_that_names_none(write: Write, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    own = {"context": "app", "args": {"BASE_IMAGE": "own", "N": "1"}}
    containers = [{"id": "a", "build": "app"}, {"id": "b", "build": own}, {"id": "c", "image": "i"}]
    loaded = load(write({"base_image": "base", "containers": containers})).config.containers
    assert [spec.build.args if spec.build else None for spec in loaded] == [
        {"BASE_IMAGE": "base"},
        {"BASE_IMAGE": "own", "N": "1"},
        None,
    ]


def test_a_build_may_be_its_folder_alone(write: Write, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    build = load(write({"containers": [{"id": "a", "build": "app"}]})).config.containers[0].build
    assert build is not None
    assert (build.context, build.args) == (tmp_path / "app", {})


def test_a_loaded_configuration_does_not_change(write: Write) -> None:
    config = load(write({})).config
    with pytest.raises(ValidationError):
        config.node_id = "other"  # type: ignore[misc]


# --- the environment ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${NAME}", "value"),
        ("a ${NAME} b${NAME}", "a value bvalue"),
        ("${NAME:-other}", "value"),
        ("${NOPE:-other}", "other"),
        ("${NOPE:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${NOPE:-python:3.11-slim}", "python:3.11-slim"),
        ("$${NAME}", "${NAME}"),
        ("$NAME $ {NAME} $$ }", "$NAME $ {NAME} $$ }"),
        ("${SELF}", "${NAME}"),
    ],
)
def test_variables_in_texts_are_put_in_once(write: Write, text: str, expected: str) -> None:
    environ = {"NAME": "value", "EMPTY": "", "SELF": "${NAME}"}
    file = write({"node_id": text, "containers": [{"id": "a", "image": "i", "env": {"${KEY}": text}}]})
    config = load(file, environ=environ).config
    assert (config.node_id, config.containers[0].env) == (expected, {"${KEY}": expected})


def test_a_variable_may_stand_for_a_number_or_a_truth_value(write: Write) -> None:
    file = write({"server": {"port": "${PORT:-4002}", "host": "::", "insecure": "${OPEN}"}})
    assert load(file, environ={"OPEN": "true"}).config.server.port == 4002


def test_the_environment_of_the_process_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_TEST_NAME", "n")
    assert load(write({"node_id": "${STOKER_TEST_NAME}"})).config.node_id == "n"


# --- secrets ---


@pytest.mark.parametrize(("content", "expected"), [("hush\n", "hush"), ("hush\n\n", "hush\n"), (" é${X}", " é${X}")])
def test_a_secret_may_be_in_a_file_beside_the_configuration(
    write: Write, tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "secret").write_text(content, "utf-8")
    tree = {
        "redis": {"password_file": "secret"},
        "docker": {"username": "u", "password": "", "password_file": str(tmp_path / "secret")},
        "containers": [{"id": "a", "url": "http://a", "bearer_file": "${FOLDER}/secret"}],
    }
    config = load(write(tree), environ={"FOLDER": "."}).config
    assert config.redis is not None
    assert config.docker is not None
    secrets = (config.redis.password, config.docker.password, config.containers[0].bearer)
    assert [secret.get_secret_value() for secret in secrets] == [expected] * 3


def test_a_redis_url_may_be_in_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("rediss://u:hush@h/1\n")
    config = load(write({"redis": {"url_file": "secret"}})).config
    assert config.redis is not None
    assert config.redis.url == "rediss://u:hush@h/1"
    assert "hush" not in repr(config)


@pytest.mark.parametrize(
    ("tree", "warned"),
    [
        ({"redis": {"password": "p"}}, "redis.password"),
        ({"redis": {"url": "redis://u:p@h"}}, "redis.url"),
        ({"containers": [{"id": "a", "image": "i", "env": {"API_KEY": "p", "N": "1"}}]}, "containers[0].env.API_KEY"),
        ({"redis": {"password": "${P}", "url": "redis://${P}@h"}}, None),
        ({"redis": {"password": ""}}, None),
    ],
)
def test_a_file_with_secrets_that_everybody_may_read_is_a_warning(
    write: Write, tree: dict[str, object], warned: str | None
) -> None:
    file = write(tree)
    assert load(file, environ={"P": "p"}).warnings == ()
    file.chmod(0o644)
    expected = [f"everybody on this machine may read it, and it holds secrets ({warned}): chmod 600 is better"]
    assert warnings_of(load(file, environ={"P": "p"}), file) == (expected if warned else [])


def test_a_file_that_holds_one_secret_and_that_everybody_may_read_is_a_warning(write: Write, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    secret.chmod(0o600)
    spec = {"id": "a", "url": "http://a", "bearer_file": str(secret)}
    file = write({"redis": {"password_file": "${NAME}"}, "containers": [spec], "server": {"cert_file": "secret"}})
    environ = {"NAME": "secret"}
    assert not any("chmod" in warning for warning in load(file, environ=environ).warnings)
    secret.chmod(0o644)
    warned = [warning for warning in warnings_of(load(file, environ=environ), file) if "chmod" in warning]
    assert warned == [
        f"{place}: everybody on this machine may read {secret}: chmod 600 is better"
        for place in ("redis.password_file", "containers[0].bearer_file")
    ]


def test_no_secret_is_ever_told(write: Write) -> None:
    spec = {"id": "a", "url": "ftp://u:hush@h", "bearer": {"x": "hush"}, "env": {"MODE": ["hush"]}}
    built = {"id": "b", "build": {"context": ".", "args": {"MODE": ["hush"]}}}
    tree = {
        "redis": {"url": "amqp://u:hush@h", "password": ["hush"]},
        "docker": "hush",
        "containers": [spec, built],
    }
    faults = faults_of(write(tree))
    assert len(faults) == 7
    assert "hush" not in "".join(faults)


def test_masking_hides_what_looks_like_a_secret_and_nothing_else() -> None:
    tree = {"env": {"HF_TOKEN": "a", "apiKey": "b", "EMPTY_SECRET": "", "KEYBOARD": "c", "N": 1}, "password_file": "f"}
    shown = {
        "env": {"HF_TOKEN": MASK, "apiKey": MASK, "EMPTY_SECRET": "", "KEYBOARD": "c", "N": 1},
        "password_file": "f",
    }
    assert masked(tree) == shown
    assert masked(["redis://u:p/w@h:1/0", "redis://h?password=p&db=1", "http://h/"]) == [
        f"redis://{MASK}@h:1/0",
        f"redis://h?password={MASK}&db=1",
        "http://h/",
    ]


# --- warnings ---


@pytest.mark.parametrize(
    ("tree", "warning"),
    [
        ({"server": {"prot": 1}}, 'server.prot: unknown key, left out; did you mean "port"?'),
        ({"log_path": "x"}, 'log_path: unknown key, left out; did you mean "log"?'),
        ({"zzz": 1}, "zzz: unknown key, left out"),
        ({"a b": 1}, '["a b"]: unknown key, left out'),
        (
            {"containers": [{"id": "a", "image": "i", "hardening": {"memory": 1}}]},
            'containers[0].hardening.memory: unknown key, left out; did you mean "memory_bytes"?',
        ),
        (
            {"containers": [{"id": "a", "image": "i", "url": "http://h"}]},
            "containers[0].image: not used: url is given and wins",
        ),
        (
            {"containers": [{"id": "a", "image": "i", "build": {"context": "."}}]},
            "containers[0].image: not used: build is given and wins",
        ),
        ({"chain": {"rpc_url": "x"}}, "chain.rpc_url: not used: on-chain work is not supported"),
        (
            {"containers": [{"id": "a", "image": "i", "privileged": True}]},
            'containers[0].privileged: unknown key, left out; did you mean "hardening.privileged"?',
        ),
        (
            {"containers": [{"id": "a", "image": "i", "network_mode": "host"}]},
            'containers[0].network_mode: unknown key, left out; did you mean "hardening.host_network"?',
        ),
    ],
)
def test_what_a_file_says_in_vain_is_a_warning(write: Write, tree: object, warning: str) -> None:
    file = write(tree)
    assert warnings_of(load(file), file) == [warning]


@pytest.mark.parametrize(
    "tree",
    [
        {"forward_stats": False, "startup_wait": None, "chain": {"enabled": False, "rpc_url": None}},
        {"containers": [{"id": "a", "image": "i", "url": "${NOPE:-}", "allowed_addresses": []}]},
        {"containers": [{"id": "a", "image": "i", "env": {"anything": "goes"}}]},
    ],
)
def test_what_has_no_effect_anyway_is_no_warning(write: Write, tree: object) -> None:
    assert load(write(tree), environ={}).warnings == ()


# --- mistakes ---

ID = "1 to 128 letters, digits, dots, underscores or hyphens, the first a letter or digit"
FOLDER = "a folder that exists, seen from the configuration file"
READABLE = "a text file that can be read"
DANGERS = ("privileged", "host_network")
MEMORY = "a number of bytes, 6 MiB (6291456) or more: Docker refuses less"
PORT = "a port, 0 to 65535"
REDIS = "a redis://, rediss://, unix:///, redis+sentinel://HOST:PORT,.../NAME or redis+cluster://HOST:PORT,... URL"


def server(**values: object) -> dict[str, object]:
    return {"server": values}


def redis(**values: object) -> dict[str, object]:
    return {"redis": values}


def container(**values: object) -> dict[str, object]:
    return {"containers": [{"id": "a", "image": "i"} | values]}


def containers(*specs: object, **rest: object) -> dict[str, object]:
    return {"containers": specs, **rest}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "found nothing in it, expected a JSON object"),
        (" \n", "found nothing in it, expected a JSON object"),
        ("[]", "found a list, expected an object"),
        ("null", "found null, expected an object"),
        ("1", "found a number, expected an object"),
        (
            '{"a": 1,\n  b}',
            'line 2, column 3: found "b", expected JSON (Expecting property name enclosed in double quotes)',
        ),
        ('{"a": 1', "line 1, column 8: found the end, expected JSON (Expecting ',' delimiter)"),
        ('{"a": 1} x', 'line 1, column 10: found "x", expected JSON (Extra data)'),
        ('{"a": ' + "9" * 5000 + "}", "found a number of too many digits, expected a configuration"),
        ("[" * 100_000, "found too many brackets in each other, expected a configuration"),
        ('{"a":' * 100_000, "found too many brackets in each other, expected a configuration"),
        ('{"server": {"port": 1, "port": 2}}', "server.port: found more than once, expected once"),
        ('{"log": {}, "log": {}, "log": {}}', "log: found more than once, expected once"),
        (
            '{"containers": [{"id":"a","image":"i","env":{"A":"","A":""}}]}',
            "containers[0].env.A: found more than once, expected once",
        ),
        ('{"server": {"port": NaN}}', f"server.port: found NaN, expected {PORT}"),
        ('{"runner": {"lease_s": 1e999}}', "runner.lease_s: found Infinity, expected seconds, more than 0"),
    ],
)
def test_what_is_no_json_object_is_told_with_its_place(write: Write, text: str, fault: str) -> None:
    assert faults_of(write(text)) == [fault]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert faults_of(tmp_path) == ["found Is a directory, expected a file that can be read"]
    assert faults_of(tmp_path / "no") == ["found No such file or directory, expected a file that can be read"]
    file = tmp_path / "latin"
    file.write_bytes(b'{"a": "\xe9"}')
    assert faults_of(file) == ["found a byte at offset 7 that is not UTF-8, expected JSON"]


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (server(port="abc"), f'server.port: found "abc", expected {PORT}'),
        (server(port=70000), f"server.port: found 70000, expected {PORT}"),
        (server(port=True), f"server.port: found true, expected {PORT}"),
        (server(port=4000.5), f"server.port: found 4000.5, expected {PORT}"),
        (server(port={}), f"server.port: found an object, expected {PORT}"),
        ({"server": []}, "server: found a list, expected an object"),
        ({"server": "hush"}, "server: found text, expected an object"),
        ({"node_id": "x" * 100}, None),
        ({"node_id": 5}, "node_id: found 5, expected text"),
        (server(rate_limit={"period": "0"}), 'server.rate_limit.period: found "0", expected seconds, more than 0'),
        (
            server(rate_limit={"num_requests": 0}),
            "server.rate_limit.num_requests: found 0, expected a whole number, 1 or more",
        ),
        (server(unknown_ids="x"), 'server.unknown_ids: found "x", expected one of "404", "omit"'),
        (server(insecure="maybe"), 'server.insecure: found "maybe", expected true or false'),
        (
            server(status_networks=["10.0.0.0/33"]),
            'server.status_networks[0]: found "10.0.0.0/33", expected an IP address or network',
        ),
        (server(host=""), 'server.host: found "", expected text that is not empty'),
        ({"startup_wait": -1}, "startup_wait: found -1, expected seconds, 0 or more"),
        (
            {"log": {"level": "x" * 100}},
            f'log.level: found "{"x" * 76}..., expected one of "debug", "info", "warning", "error"',
        ),
        ({"backend": "remote"}, 'backend: found "remote", expected one of "auto", "docker", "process"'),
        ({"containers": {}}, "containers: found an object, expected a list, each an object"),
        ({"containers": ["a"]}, "containers[0]: found text, expected an object"),
        ({"containers": [None]}, "containers[0]: found null, expected an object"),
        ({"containers": [{"image": "i"}]}, f"containers[0].id: found nothing, expected {ID}"),
        (container(id=""), f'containers[0].id: found "", expected {ID}'),
        (container(id="-a"), f'containers[0].id: found "-a", expected {ID}'),
        (container(id="a/b"), f'containers[0].id: found "a/b", expected {ID}'),
        (container(id="a\n"), f'containers[0].id: found "a\\n", expected {ID}'),
        (container(id="é"), f'containers[0].id: found "\\u00e9", expected {ID}'),
        (container(id="a" * 128), None),
        (
            container(allowed_ips="10.0.0.1"),
            'containers[0].allowed_ips: found "10.0.0.1", expected a list, each an IP address or network',
        ),
        (
            container(allowed_ips=["::1", "1.2.3"]),
            'containers[0].allowed_ips[1]: found "1.2.3", expected an IP address or network',
        ),
        (container(allowed_ips=[5]), "containers[0].allowed_ips[0]: found 5, expected an IP address or network"),
        (container(env=[]), "containers[0].env: found a list, expected an object, each value text or a number"),
        (container(env={"A B": None}), 'containers[0].env["A B"]: found null, expected text or a number'),
        (
            container(backend="podman"),
            'containers[0].backend: found "podman", expected one of "auto", "docker", "process", "remote"',
        ),
        (container(concurrency=0), "containers[0].concurrency: found 0, expected a whole number, 1 or more"),
        (container(bearer=5), "containers[0].bearer: found a number, expected text"),
        (
            container(hardening={"memory_bytes": 6 * MIB - 1}),
            f"containers[0].hardening.memory_bytes: found 6291455, expected {MEMORY}",
        ),
        (
            container(hardening={"cpus": "inf"}),
            'containers[0].hardening.cpus: found "inf", expected a number, more than 0',
        ),
        (container(url="h:3000"), 'containers[0].url: found "h:3000", expected an http:// or https:// URL'),
        (container(url="https://"), 'containers[0].url: found "https://", expected an http:// or https:// URL'),
        (
            container(url="http://h:99999"),
            'containers[0].url: found "http://h:99999", expected an http:// or https:// URL',
        ),
        (
            container(build={"context": "no/where"}),
            f'containers[0].build.context: found "no/where", expected {FOLDER}',
        ),
        (
            container(build="no/where"),
            f'containers[0].build.context: found "no/where", expected {FOLDER}',
        ),
        (
            container(build={}),
            f"containers[0].build.context: found nothing, expected {FOLDER}",
        ),
        (redis(url="unix:///run/redis.sock?db=1"), None),
        (redis(url="unix://"), f'redis.url: found "unix://", expected {REDIS}'),
        (redis(url="redis+sentinel://h"), f'redis.url: found "redis+sentinel://h", expected {REDIS}'),
        (redis(url="redis+sentinel://h,h2:26380/jobs"), None),
        (redis(url="redis+cluster://u:p@h"), None),
        (redis(url="redis+cluster://u:p@"), f'redis.url: found "redis+cluster://{MASK}@", expected {REDIS}'),
        ({"docker": {"username": "u"}}, "docker.password: found nothing, expected text that is not empty"),
        ({"docker": {"username": "", "password": "p"}}, 'docker.username: found "", expected text that is not empty'),
    ],
)
def test_a_wrong_value_is_told_in_one_line(write: Write, tree: object, fault: str | None) -> None:
    file = write(tree)
    if fault is None:
        load(file)
    else:
        assert faults_of(file) == [fault]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x${NOPE}", "node_id: found ${NOPE}, expected the environment variable NOPE to be set"),
        ("${NOPE", 'node_id: found a "${" without a name, expected ${NAME}, ${NAME:-default}, or $${ for ${'),
        ("${}", 'node_id: found a "${" without a name, expected ${NAME}, ${NAME:-default}, or $${ for ${'),
        ("${A:-${B}}", 'node_id: found a "${" without a name, expected ${NAME}, ${NAME:-default}, or $${ for ${'),
    ],
)
def test_a_reference_to_nothing_is_told(write: Write, text: str, fault: str) -> None:
    assert faults_of(write({"node_id": text})) == [fault]


def test_secret_files_that_cannot_be_used_are_told(write: Write, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    tree = {
        "redis": {"url_file": "missing", "password": "p", "password_file": "binary"},
        "docker": {"username": "u", "password_file": "."},
        "containers": [{"id": "a", "url": "http://h", "bearer_file": "binary"}],
    }
    assert faults_of(write(tree)) == [
        f'redis.url_file: found "{tmp_path}/missing" (No such file or directory), expected {READABLE}',
        "redis.password_file: found password beside it, expected one of the two",
        f'docker.password_file: found "{tmp_path}" (Is a directory), expected {READABLE}',
        f'containers[0].bearer_file: found "{tmp_path}/binary" (not UTF-8 text), expected {READABLE}',
    ]


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (containers({"id": "a"}), "containers[0]: found no image, build or url, expected one of them"),
        (containers({"id": "a", "image": ""}), "containers[0]: found no image, build or url, expected one of them"),
        (containers({"id": "a", "url": "http://h"}), None),
        (containers({"id": "a", "port": 3000}, manage_containers="false"), None),
        (
            containers({"id": "a", "image": "i"}, manage_containers=False),
            "containers[0]: found no url or port, expected one of them, since manage_containers is false",
        ),
        (
            containers({"id": "a", "image": "i", "backend": "remote"}),
            "containers[0]: found no url or port, expected one of them, since its backend is remote",
        ),
        (
            containers({"id": "a", "image": "i"}, {"id": "b", "image": "i"}, {"id": "a", "url": "http://h"}),
            'containers[2].id: found "a", expected another id: containers[0] has this one',
        ),
        (
            containers({"id": "a", "image": "i", "port": "3000"}, {"id": "b", "image": "i", "port": 3000}),
            "containers[1].port: found 3000, expected another port, or 0 for a free one: containers[0] has this one",
        ),
        (
            containers({"id": "a", "image": "i", "port": 4000}),
            "containers[0].port: found 4000, expected another port, or 0 for a free one: the server has this one",
        ),
        (containers({"id": "a", "image": "i"}, {"id": "b", "image": "i", "port": 0}, server={"port": 0}), None),
        (containers({"id": "a", "url": "http://h", "port": 3000}, {"id": "b", "image": "i", "port": 3000}), None),
        (
            {"node_id": "a/r1"},
            'node_id: found "a/r1", expected a name without a slash: NODE/r1 is that of a process of NODE',
        ),
        ({"chain": {"enabled": "true"}}, "chain.enabled: found true, expected false: on-chain work is not supported"),
        (server(host="0.0.0.0"), None),
        (
            container(hardening={"privileged": True}),
            'containers[0].hardening.privileged: found true, expected false, unless docker_allow lists "privileged": '
            "it gives the container this host",
        ),
        (
            container(hardening={"host_network": True}) | {"docker_allow": ["privileged"]},
            "containers[0].hardening.host_network: found true, expected false, unless docker_allow lists "
            '"host_network": it gives the container this host',
        ),
        (container(hardening={"host_network": True, "privileged": True}) | {"docker_allow": list(DANGERS)}, None),
        (
            {"runner": {"gone_s": 10}},
            "runner.gone_s: found 10 s, expected more than twice runner.reclaim_s (5 s), or live nodes count as gone: "
            "raise it, or lower that",
        ),
        ({"runner": {"gone_s": 1, "reclaim_s": 0.2, "lease_s": 1}}, None),
    ],
)
def test_values_that_do_not_go_together_are_told(write: Write, tree: object, fault: str | None) -> None:
    file = write(tree)
    if fault is None:
        load(file)
    else:
        assert faults_of(file) == [fault]


def test_all_faults_are_told_at_once_and_none_that_only_follows_from_another(write: Write) -> None:
    file = write(
        {
            "server": {"host": "0.0.0.0", "port": "x"},
            "docker": {"password": 5},
            "chain": {"enabled": True},
            "containers": [
                {"id": "a", "image": 5, "concurrency": 0},
                {"image": "i", "port": 3000},
                7,
                {"id": "a", "url": "ftp://h"},
                {"id": "b", "build": {"args": 1}, "env": {"A": "${NOPE}"}},
                {"id": "b", "port": 3000, "external": "x"},
            ],
        }
    )
    places = [fault.split(": ")[0] for fault in faults_of(file)]
    assert places == [
        "containers[4].env.A",
        "server.port",
        "docker.username",
        "docker.password",
        "containers[0].image",
        "containers[0].concurrency",
        "containers[1].id",
        "containers[2]",
        "containers[3].url",
        "containers[4].build.context",
        "containers[4].build.args",
        "containers[5].external",
        "chain.enabled",
        "containers[3].id",
        "containers[5].id",
        "containers[5].port",
        "containers[5]",
    ]


def places(value: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield loc
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*loc, key))


DENSE: dict[str, Any] = {
    **Config(containers=({"id": "a", "image": "i", "build": {"context": "."}},)).model_dump(mode="json"),
    "redis": {"url": "redis://h", "password_file": "f"},
    "docker": {"username": "u", "password": "p"},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["${", "0", "1.5", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("id"), inner, max_size=3),
    max_leaves=4,
)


def _told(file: Path) -> tuple[str, ...]:
    try:
        return load(file, environ={}).warnings
    except ConfigError as error:
        return error.faults


@settings(deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(list(places(DENSE))[1:]), JSON), max_size=4))
def test_whatever_stands_in_a_file_it_loads_or_every_fault_is_one_line(
    changes: list[tuple[tuple[Any, ...], Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = copy.deepcopy(DENSE)
    for loc, value in changes:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change took the place away
            parent = tree
            for part in loc[:-1]:
                parent = parent[part]
            parent[loc[-1]] = value
    file = tmp_path_factory.getbasetemp() / "fuzzed.json"
    file.write_text(json.dumps(tree))
    assert all(line.startswith(f"{file}: ") and len(line.splitlines()) == 1 for line in _told(file))


# --- the example ---


def test_the_example_configuration_loads_without_a_warning(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "config.example.json"
    file = tmp_path / example.name
    file.write_bytes(example.read_bytes())
    for spec in json.loads(example.read_bytes())["containers"]:
        (tmp_path / spec["build"]).mkdir(parents=True)
    loaded = load(file, environ={})
    assert loaded.warnings == ()
    assert [spec.id for spec in loaded.config.containers] == ["hello-world", "ocr", "language", "keywords", "sentiment"]
    assert loaded.config.server.port == 4000
    for spec in loaded.config.containers:
        assert spec.backend is BackendName.AUTO
        assert spec.build is not None
        assert spec.build.context == tmp_path / "containers" / spec.id
        assert spec.build.args == {"BASE_IMAGE": "python:3.11-slim"}
    assert load(file, environ={"STOKER_BASE_IMAGE": "mine"}).config.containers[0].build.args["BASE_IMAGE"] == "mine"  # type: ignore[union-attr]
