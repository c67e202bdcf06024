"""Where images come from: a real engine and a small registry of the test's own."""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from node.backends.docker.engine import Engine
from node.backends.docker.images import Images
from node.backends.docker.plan import Mark
from node.config import ContainerSpec, Registry
from node.errors import BackendError
from tests.backends.grounds import LABEL, DockerGround, quiet
from tests.backends.registry import ImageRegistry
from tests.support import free_port

pytestmark = pytest.mark.docker

ACCOUNT = ("someone", "pa:ss wörd")


@pytest.fixture
def registry(engine: docker.DockerClient) -> Iterator[ImageRegistry]:
    with ImageRegistry() as registry:
        yield registry


@pytest.fixture
def private(engine: docker.DockerClient) -> Iterator[ImageRegistry]:
    with ImageRegistry(account=ACCOUNT) as registry:
        yield registry


@pytest.fixture
async def fence() -> AsyncIterator[Engine]:
    async with Engine() as engine:
        yield engine


def images(fence: Engine, *, account: Registry | None = None, patience_s: float = 30) -> Images:
    """A new object, as after a restart of the node: it has asked no registry yet."""
    return Images(fence, mark=Mark(node_id="test", prefix="stoker"), registry=account, patience_s=patience_s)


def spec(image: str) -> ContainerSpec:
    return ContainerSpec(id="service", image=image)


def account(host: str) -> Registry:
    return Registry.model_validate({"username": ACCOUNT[0], "password": ACCOUNT[1], "registry": host})


async def test_an_image_is_pulled_and_its_progress_is_told(
    fence: Engine, registry: ImageRegistry, engine: docker.DockerClient
) -> None:
    told: list[str] = []
    registry.put(layer_mib=20)
    found = await images(fence).find(spec(registry.image), told.append)
    assert engine.images.get(registry.image).id == found
    assert told[0] == f"pulling image {registry.image}"
    assert any(line.endswith(" of 21 MB") for line in told), told


async def test_the_registry_is_asked_once_in_a_life(fence: Engine, registry: ImageRegistry) -> None:
    one_life = images(fence)
    first = await one_life.find(spec(registry.image), quiet)
    asked = len(registry.requests)
    assert await one_life.find(spec(registry.image), quiet) == first
    assert len(registry.requests) == asked


async def test_a_tag_that_moved_is_pulled_in_the_next_life(fence: Engine, registry: ImageRegistry) -> None:
    first = await images(fence).find(spec(registry.image), quiet)
    registry.put(layer_mib=1)
    assert await images(fence).find(spec(registry.image), quiet) != first


async def test_an_image_by_digest_that_is_here_is_not_asked_for(fence: Engine, registry: ImageRegistry) -> None:
    first = await images(fence).find(spec(registry.by_digest), quiet)
    asked = len(registry.requests)
    assert await images(fence).find(spec(registry.by_digest), quiet) == first
    assert len(registry.requests) == asked


async def test_the_account_is_used(fence: Engine, private: ImageRegistry) -> None:
    assert await images(fence, account=account(private.address)).find(spec(private.image), quiet)


async def test_without_the_account_the_refusal_is_told(fence: Engine, private: ImageRegistry) -> None:
    with pytest.raises(BackendError, match=f"image {private.image} is not on this machine and cannot be pulled") as no:
        await images(fence).find(spec(private.image), quiet)
    assert not no.value.retry
    assert ACCOUNT[1] not in str(no.value)


async def test_the_account_of_another_registry_is_not_shown(fence: Engine, private: ImageRegistry) -> None:
    with pytest.raises(BackendError):
        await images(fence, account=account("registry.invalid")).find(spec(private.image), quiet)
    with pytest.raises(BackendError):  # without a name it is Docker Hub's
        await images(fence, account=account("")).find(spec(private.image), quiet)
    assert private.authorizations == set()


async def test_an_image_that_the_registry_does_not_have_is_named(fence: Engine, registry: ImageRegistry) -> None:
    missing = f"{registry.address}/stoker/missing:1"
    with pytest.raises(BackendError, match=f"{missing} is not on this machine.*unknown") as caught:
        await images(fence).find(spec(missing), quiet)
    assert not caught.value.retry


async def test_a_registry_that_is_down_is_named(fence: Engine) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(BackendError, match=f"{address}.*connection refused") as caught:
        await images(fence).find(spec(f"{address}/any:1"), quiet)
    assert caught.value.retry


async def test_the_image_of_this_machine_is_used_when_the_registry_is_down(
    fence: Engine, registry: ImageRegistry
) -> None:
    told: list[str] = []
    first = await images(fence).find(spec(registry.image), quiet)
    registry.__exit__()
    assert await images(fence).find(spec(registry.image), told.append) == first
    assert any("using the image" in line and "connection refused" in line for line in told), told


async def test_the_image_of_this_machine_is_used_when_the_registry_is_silent(
    fence: Engine, registry: ImageRegistry
) -> None:
    told: list[str] = []
    first = await images(fence).find(spec(registry.image), quiet)
    registry.fall_silent()
    began = time.monotonic()
    assert await images(fence, patience_s=2).find(spec(registry.image), told.append) == first
    assert time.monotonic() - began < 8
    assert any("did not answer within 2 s" in line for line in told), told


@pytest.mark.parametrize("name", ["https://host/image", "UPPER/case", "a b"])
async def test_a_name_that_is_none_is_refused(fence: Engine, engine: docker.DockerClient, name: str) -> None:
    with pytest.raises(BackendError) as caught:
        await images(fence).find(spec(name), quiet)
    assert not caught.value.retry


def folder(path: Path, dockerfile: str, **args: str) -> ContainerSpec:
    (path / "Dockerfile").write_text(dockerfile)
    return ContainerSpec.model_validate({"id": "Servi.ce_1", "build": {"context": path, "args": args}})


async def test_a_build_takes_its_arguments(
    fence: Engine, docker_ground: DockerGround, tmp_path: Path, engine: docker.DockerClient
) -> None:
    wanted = folder(tmp_path, f"FROM stoker-test-base\nARG WORD\nLABEL {LABEL} word=$WORD\n", WORD="hello")
    found = await images(fence).find(wanted, quiet)
    assert engine.images.get(found).labels["word"] == "hello"


async def test_a_build_pulls_its_base_image_with_the_account(
    fence: Engine, private: ImageRegistry, tmp_path: Path, engine: docker.DockerClient
) -> None:
    wanted = folder(tmp_path, f"FROM {private.image}\nLABEL more=1\n")
    with pytest.raises(BackendError, match="cannot build"):
        await images(fence).find(wanted, quiet)
    assert await images(fence, account=account(private.address)).find(wanted, quiet)


async def test_a_former_build_is_removed(fence: Engine, tmp_path: Path, engine: docker.DockerClient) -> None:
    def ids() -> set[Any]:
        return {image.id for image in engine.images.list(filters={"label": LABEL})}

    first = await images(fence).find(folder(tmp_path, f"FROM stoker-test-base\nLABEL {LABEL} n=1\n"), quiet)
    assert first in ids()
    second = await images(fence).find(folder(tmp_path, f"FROM stoker-test-base\nLABEL {LABEL} n=2\n"), quiet)
    assert second in ids()
    assert first not in ids()
