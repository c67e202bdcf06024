"""`stoker config` tells mistakes and shows what is in effect, and the reference page says what the models say."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.cli.config import config_app
from node.config import Config, load

run = CliRunner()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STOKER_CONFIG", raising=False)
    monkeypatch.delenv("INFERNET_CONFIG_PATH", raising=False)


def write(name: str, tree: object) -> None:
    Path(name).write_text(json.dumps(tree))
    Path(name).chmod(0o600)


@pytest.mark.parametrize(("count", "words"), [(0, "0 containers"), (1, "1 container"), (2, "2 containers")])
def test_check_says_that_a_file_is_right(count: int, words: str) -> None:
    write("c.json", {"containers": [{"id": f"c{index}", "image": "i"} for index in range(count)]})
    result = run.invoke(config_app, ["check", "c.json"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"c.json: ok, {words}\n", "")


def test_check_tells_warnings_beside_the_answer() -> None:
    write("c.json", {"prot": 1, "forward_stats": True})
    result = run.invoke(config_app, ["check", "c.json"])
    assert (result.exit_code, result.stdout) == (0, "c.json: ok, 0 containers, 2 warnings\n")
    assert result.stderr.splitlines() == [
        "warning: c.json: prot: unknown key, left out",
        "warning: c.json: forward_stats: not used: Infernet's telemetry; nothing is ever sent anywhere",
    ]


NEEDS_KEY = "so the node starts only when there is an API key (stoker keys create), or with server.insecure"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "node.example", "localhost.example"])
def test_check_warns_of_an_address_that_others_can_reach(host: str) -> None:
    write("c.json", {"server": {"host": host}})
    result = run.invoke(config_app, ["check", "c.json"])
    assert (result.exit_code, result.stdout) == (0, "c.json: ok, 0 containers, 1 warning\n")
    assert result.stderr == f"warning: c.json: server.host: others can reach {host}, {NEEDS_KEY}\n"


def test_check_warns_of_a_door_that_is_open_on_purpose() -> None:
    write("c.json", {"server": {"host": "0.0.0.0", "insecure": True}})
    result = run.invoke(config_app, ["check", "c.json"])
    assert result.stderr.startswith("warning: c.json: server.insecure: while there is no API key, whoever can reach")


@pytest.mark.parametrize(
    "server", [{"host": "localhost"}, {"host": "::1"}, {"host": "127.9.9.9"}, {"host": "0.0.0.0", "require_keys": True}]
)
def test_check_has_nothing_against_a_closed_door(server: dict[str, object]) -> None:
    write("c.json", {"server": server})
    assert run.invoke(config_app, ["check", "c.json"]).stderr == ""


@pytest.mark.parametrize("command", ["check", "show"])
def test_mistakes_end_a_command_with_code_2(command: str) -> None:
    write("c.json", {"server": {"port": -1}, "containers": [{"id": "a"}]})
    result = run.invoke(config_app, [command, "c.json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "c.json: server.port: found -1, expected a port, 0 to 65535",
        "c.json: containers[0]: found no image, build or url, expected one of them",
    ]


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_file_that_is_not_there_ends_a_command_with_code_2(command: str) -> None:
    result = run.invoke(config_app, [command])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("config.json: found no file, expected the configuration (command line: not given, ")
    assert len(result.stderr.splitlines()) == 1


def test_without_an_argument_the_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write("named.json", {})
    monkeypatch.setenv("STOKER_CONFIG", "named.json")
    assert run.invoke(config_app, ["check"]).stdout == "named.json: ok, 0 containers\n"


def test_show_tells_what_is_in_effect_without_secrets() -> None:
    Path("secret").write_text("hush\n")
    spec = {"id": "a", "image": "i", "bearer": "hush", "env": {"HF_TOKEN": "hush", "MODEL": "${MODEL:-tiny}"}}
    tree = {
        "redis": {"url": "redis://u:hush@h:1", "password": "hush"},
        "docker": {"username": "u", "password_file": "secret"},
        "containers": [spec],
        "unknown": 1,
    }
    write("c.json", tree)
    result = run.invoke(config_app, ["show", "c.json"])
    shown = json.loads(result.stdout)
    assert result.exit_code == 0
    assert "hush" not in result.output
    assert "unknown" in result.stderr
    assert shown["redis"]["url"] == "redis://**********@h:1"
    assert shown["docker"]["password"] == "*" * 10
    assert shown["containers"][0]["env"] == {"HF_TOKEN": "*" * 10, "MODEL": "tiny"}


def test_show_writes_a_file_that_loads_again() -> None:
    write("c.json", {"containers": [{"id": "a", "image": "i", "allowed_ips": ["10.0.0.1/8"]}]})
    Path("again.json").write_text(run.invoke(config_app, ["show", "c.json"]).stdout)
    assert load(Path("again.json")).config == load(Path("c.json")).config


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    Path("page.md").write_bytes(page.read_bytes())
    assert run.invoke(config_app, ["docs", "page.md"]).exit_code == 0
    assert Path("page.md").read_text() == page.read_text(), "run: stoker config docs docs/configuration.md"
    assert all(f"| `{key}` |" in page.read_text() for key in Config.model_fields)


def test_the_reference_is_written_into_no_other_file() -> None:
    write("c.json", {})
    before = Path("c.json").read_text()
    assert run.invoke(config_app, ["docs", "c.json"]).exit_code == 2
    assert Path("c.json").read_text() == before
