"""The example containers, each by itself: as a local process, then as a Docker image. No node takes part."""

import os
import subprocess
import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

import docker
import pytest
import requests
import uv

from tests.support import ROOT, until

EXAMPLES = ROOT / "containers"
NAMES = ["hello-world", "language", "keywords", "sentiment", "ocr"]
STRICT: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": "size=16m"},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}

# The first test waits for the base image, and each for packages from the network.
pytestmark = [pytest.mark.timeout(600), pytest.mark.parametrize("name", NAMES)]


def test_passes_its_own_test_with_its_own_requirements(name: str) -> None:
    run = [uv.find_uv_bin(), "run", "--isolated", "--no-project", "--python", sys.executable]
    tested = subprocess.run(
        [*run, "--with-requirements", "requirements.txt", "python", "-m", "unittest"],
        cwd=EXAMPLES / name,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert tested.returncode == 0, tested.stderr
    assert "Ran 0 tests" not in tested.stderr


@pytest.mark.docker
def test_works_as_an_image_that_may_do_nothing_but_serve(name: str, engine: docker.DockerClient, base: str) -> None:
    """No capability, no root, no disk but a small /tmp, and in its own test no network to fetch models from."""
    context = EXAMPLES / name
    image, _ = engine.images.build(
        path=str(context), buildargs={"BASE_IMAGE": base}, tag=f"stoker-test-{name}", rm=True, forcerm=True
    )
    test = {str(context / "test_app.py"): {"bind": "/app/test_app.py", "mode": "ro"}}
    engine.containers.run(
        image, ["-m", "unittest"], entrypoint="python", volumes=test, network_mode="none", remove=True, **STRICT
    )

    service = engine.containers.run(image, detach=True, **STRICT)
    try:
        service.reload()
        url = f"http://{service.attrs['NetworkSettings']['IPAddress']}:3000"
        assert until(lambda: about(url), message=f"{name} answers")["service"] == name
        asked_at = monotonic()
        service.stop(timeout=30)
        assert monotonic() - asked_at < 5
        assert service.wait()["StatusCode"] == 0
    finally:
        service.remove(force=True)


def about(url: str) -> Any:
    try:
        return requests.get(url, timeout=5).json()
    except requests.ConnectionError:
        return None


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env(timeout=300)
    yield client
    client.close()
