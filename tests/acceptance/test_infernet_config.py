"""A configuration file of Infernet v1.4 with a value at every key, on a machine without Docker."""

import json
import signal
from pathlib import Path

import pytest

from tests.support import Echo, Node, RedisServer

pytestmark = pytest.mark.acceptance

ADDRESS = "0x" + "11" * 20


async def test_an_infernet_file_for_a_remote_service_starts_unchanged_and_runs_a_job(
    tmp_path: Path, echo: Echo, redis_server: RedisServer
) -> None:
    node = Node(tmp_path, [])
    config = json.loads((Path(__file__).parent / "infernet-v1.4.json").read_text())
    config["server"]["port"] = str(node.port)
    config["redis"]["port"] = str(redis_server.port)
    config["log"]["path"] = str(tmp_path / "infernet_node.log")
    (container,) = config["containers"]
    container |= {"url": echo.url, "bearer": "secret-1", "gpu": True, "volumes": ["/tmp:/data:ro"]}
    container |= {"allowed_addresses": [ADDRESS], "allowed_delegate_addresses": [ADDRESS]}
    container |= {"accepted_payments": {ADDRESS: "10"}, "generates_proofs": True}
    node.config = config
    node.arguments = ["--data-dir", str(tmp_path / "data")]
    async with node:
        body = {"containers": ["hello-world"], "data": {"x": 1}, "requires_proof": True}
        result = await node.result((await node.post("/api/jobs", body))["id"])
        (listed,) = (await node.get("/info"))["containers"]
        assert node.kill(signal.SIGTERM) == 0
    assert result["status"] == "success"
    assert result["result"] == {"container": "hello-world", "output": {"x": 1}}
    assert listed == {
        "description": "hello world",
        "external": True,
        "id": "hello-world",
        "image": "stoker-test-hello:latest",
    }
    warnings = [event["warning"] for event in node.events("configuration")]
    assert not [warning for warning in warnings if "unknown key" in warning]
    assert [warning for warning in warnings if "containers[0].accepted_payments: not used" in warning]
    kept = (tmp_path / "infernet_node.log").read_text()
    assert result["id"] in kept
    assert "secret-1" not in kept
