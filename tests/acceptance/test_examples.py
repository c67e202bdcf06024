"""The example containers through a node, as images in Docker and as processes: real work on real input."""

import base64
import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.support import ROOT, Node, RedisServer, stoker

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

EXAMPLES = ROOT / "containers"


def built(*names: str, base: str) -> list[dict[str, Any]]:
    build = {"args": {"BASE_IMAGE": base}}
    return [{"id": name, "build": build | {"context": str(EXAMPLES / name)}} for name in names]


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A scanned page: five lines of text, as scikit-image carries it."""
    folder = tmp_path_factory.mktemp("page")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*fetch, "--dest", str(folder), "scikit-image==0.26.0"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("skimage/data/page.png")


@pytest.mark.docker
async def test_a_scanned_page_goes_through_four_images(tmp_path: Path, base: str, page: bytes) -> None:
    chain = ["ocr", "language", "keywords", "sentiment"]
    async with Node(tmp_path, built(*chain, base=base), backend="docker") as node:
        result = await node.run(chain, {"image": base64.b64encode(page).decode()})
        assert node.kill(signal.SIGTERM) == 0
    assert result["status"] == "success", result
    assert [each["container"] for each in result["intermediate_results"]] == chain[:3]
    output = result["result"]["output"]
    assert "Let us first determine markers of the coins" in output["text"]
    assert output["language"]["code"] == "en"
    assert "background" in {each["phrase"] for each in output["keywords"]}
    assert -1 <= output["sentiment"]["compound"] <= 1


@pytest.mark.docker
async def test_containers_of_a_killed_node_are_adopted_and_stopped_by_its_next_life(tmp_path: Path, base: str) -> None:
    async with Node(tmp_path, built("hello-world", base=base), backend="docker") as node:
        engine = docker.from_env()
        try:
            first = await node.run(["hello-world"], {"x": 1})
            node.kill()
            mine = {"label": "stoker.node=" + (tmp_path / "data" / "node_id").read_text()}
            before = [container.id for container in engine.containers.list(filters=mine)]
            assert len(before) == 1
            await node.start()
            assert [container.id for container in engine.containers.list(filters=mine)] == before
            assert (await node.run(["hello-world"], {"x": 1}))["result"] == first["result"]
            assert node.kill(signal.SIGTERM) == 0
            assert engine.containers.list(all=True, filters=mine) == []
        finally:
            engine.close()


@pytest.mark.docker
async def test_an_infernet_configuration_starts_unchanged(tmp_path: Path, base: str, redis_server: RedisServer) -> None:
    """Every key of v1.4, numbers as strings, and the image that its users know, with gunicorn's arguments."""
    engine = docker.from_env()
    try:
        engine.images.build(path=str(EXAMPLES / "hello-world"), buildargs={"BASE_IMAGE": base}, tag="stoker-test-hello")
    finally:
        engine.close()
    node = Node(tmp_path, [])
    config = json.loads((Path(__file__).parent / "infernet-v1.4.json").read_text())
    config["server"]["port"] = str(node.port)
    config["redis"]["port"] = str(redis_server.port)
    config["log"]["path"] = str(tmp_path / "infernet_node.log")
    node.config = config
    node.arguments = ["--data-dir", str(tmp_path / "data")]
    async with node:
        result = await node.run(["hello-world"], {"name": "you"})
        info = await node.get("/info")
        assert node.kill(signal.SIGTERM) == 0
    assert "hello, world!, your input was: {'source': 1" in result["result"]["output"]["output"]
    assert [each["image"] for each in info["containers"]] == ["stoker-test-hello:latest"]
    assert (tmp_path / "infernet_node.log").stat().st_size > 0


@pytest.mark.parametrize("backend", ["process", pytest.param("auto", marks=pytest.mark.docker)])
def test_the_demo_shows_a_chain_of_three_and_stops(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    used, environment = "process", {}
    if backend == "auto":
        used, environment = "docker", {"STOKER_BASE_IMAGE": request.getfixturevalue("base")}
    place = ["--backend", backend, "--data-dir", str(tmp_path / "demo")]
    ended = stoker("demo", *place, cwd=ROOT, seconds=600, **environment)
    assert ended.returncode == 0, ended.stderr
    assert f"sentiment   {used}" in ended.stdout
    result = json.loads(ended.stdout[ended.stdout.index("\n{\n") : ended.stdout.rindex("\n}\n") + 2])
    assert result["status"] == "success"
    assert [each["container"] for each in result["intermediate_results"]] == ["language", "keywords"]
    assert result["result"]["output"]["language"]["code"] == "en"
    assert "great civil war" in {each["phrase"] for each in result["result"]["output"]["keywords"]}
    assert ended.stdout.rstrip().endswith("The node has stopped.")
