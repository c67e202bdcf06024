"""How a container is, as an operator sees it."""

from pathlib import Path
from typing import Any

from tests.support import Node, eventually

APP = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Service(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200)

    def do_POST(self):
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["data"]
        if wish.get("exit") is not None:
            print("the last words", flush=True)
            os._exit(wish["exit"])
        print("Traceback: the reason", flush=True)
        self.answer(500)

    def answer(self, status):
        body = b"{}"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Service).serve_forever()
"""


async def health(node: Node) -> dict[str, Any]:
    (container,) = (await node.get("/info?verbose=true"))["containers"]
    return container


def service(directory: Path) -> list[dict[str, Any]]:
    folder = directory / "service"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    return [{"id": "a", "build": str(folder), "retries": 0}]


async def test_what_a_container_printed_when_a_step_failed_is_shown(tmp_path: Path) -> None:
    async with Node(tmp_path, service(tmp_path), backend="process") as node:
        result = await node.run(["a"], {})
        assert result["result"]["error"] == "container 'a': answered HTTP 500: {}"

        async def told() -> bool:
            return any("Traceback: the reason" in line for line in (await health(node))["log_tail"])

        await eventually(told, seconds=10)
        assert (await health(node))["state"] == "ready"


async def test_a_container_that_ends_is_started_again_and_why_it_ended_is_kept(tmp_path: Path) -> None:
    async with Node(tmp_path, service(tmp_path), backend="process") as node:
        result = await node.run(["a"], {"exit": 3})
        assert result["result"]["error"] == "container 'a': exited with code 3 during the step"

        async def back() -> bool:
            now = await health(node)
            return now["state"] == "ready" and now["restarts"] == 1

        await eventually(back)
        now = await health(node)
        assert now["last_error"] == "exited with code 3"
        assert now["loosened"] == ["a process of this host: no setting of `hardening` confines it"]
        assert any("the last words" in line for line in now["log_tail"])
        assert (await node.run(["a"], {}))["result"]["error"] == "container 'a': answered HTTP 500: {}"
