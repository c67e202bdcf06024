"""Where services that somebody else runs are found."""

import pytest

from node.backends.remote import RemoteBackend
from node.config import ContainerSpec
from node.errors import BackendError
from tests.backends.grounds import quiet


@pytest.mark.parametrize(
    ("where", "url"),
    [
        ({"url": "http://example.test:8000/base/"}, "http://example.test:8000/base"),
        ({"port": 3000}, "http://gate:3000"),
        ({"url": "https://example.test", "port": 3000}, "https://example.test"),
    ],
)
async def test_the_url_wins_over_the_port_on_the_host(where: dict[str, object], url: str) -> None:
    async with RemoteBackend(host="gate") as backend:
        instance = await backend.start(ContainerSpec.model_validate({"id": "service", **where}), quiet)
        assert instance.url == url
        assert await instance.log_tail(5) == []


async def test_one_without_either_is_refused() -> None:
    async with RemoteBackend() as backend:
        with pytest.raises(BackendError, match=r"service.*`url`, or `port` on 127\.0\.0\.1") as caught:
            await backend.start(ContainerSpec(id="service"), quiet)
        assert not caught.value.retry
