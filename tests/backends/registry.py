"""A small image registry: one image of one layer, over plain HTTP on 127.0.0.1, which engines accept.

Format: the OCI distribution specification 1.1 (https://github.com/opencontainers/distribution-spec), reading only.
"""

import base64
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
from typing import Any, Self

from tests.backends.grounds import LABEL

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"


ARM_PROGRAM = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00\x01\x00\x00\x00"


class ImageRegistry:
    """Serves `image`. With an `account`, only to who names it; after `fall_silent`, it answers nobody."""

    def __init__(self, *, account: tuple[str, str] | None = None) -> None:
        self.requests: list[str] = []
        self.authorizations: set[str] = set()
        self._account = account
        self._speaks = threading.Event()
        self._speaks.set()
        self._leaving = False
        self._manifest = b""
        self._blobs: dict[str, bytes] = {}
        self.put(layer_mib=1)

    def __enter__(self) -> Self:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._serve(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.image = f"{self.address}/stoker/tested:1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._speaks.set()
        self._server.shutdown()
        self._server.server_close()

    def put(self, *, layer_mib: int, architecture: str = "amd64", listed: bool = False) -> None:
        """Replace the image by a new one. `listed`: its name leads to a list with this one architecture.

        It runs a program that no machine here can run: one for ARM, as its header says.
        """
        layer = _layer(ARM_PROGRAM + os.urandom(layer_mib * 2**20))
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Labels": dict([LABEL.split("=")]), "Cmd": ["/content"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        text = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": len(text), "digest": _digest(text)},
            "layers": [{"mediaType": LAYER, "size": len(layer), "digest": _digest(layer)}],
        }
        self._manifest, self._kind = json.dumps(manifest).encode(), MANIFEST
        self._blobs = {_digest(text): text, _digest(layer): layer}
        if listed:
            entry: dict[str, Any] = {
                "mediaType": MANIFEST,
                "size": len(self._manifest),
                "digest": _digest(self._manifest),
            }
            entry["platform"] = {"architecture": architecture, "os": "linux"}
            everything = {"schemaVersion": 2, "mediaType": LIST, "manifests": [entry]}
            self._manifest, self._kind = json.dumps(everything).encode(), LIST

    @property
    def by_digest(self) -> str:
        return f"{self.address}/stoker/tested@{_digest(self._manifest)}"

    def fall_silent(self) -> None:
        self._speaks.clear()

    def _serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append(request.path)
        self._speaks.wait()
        if self._leaving:
            request.close_connection = True
            return
        authorization = request.headers.get("Authorization", "")
        self.authorizations |= {authorization} - {""}
        if self._account and authorization != _basic(*self._account):
            self._answer(request, 401, b"{}", challenge=True)
        elif request.path == "/v2/":
            self._answer(request, 200, b"{}")
        elif "/stoker/tested/manifests/" in request.path:
            self._answer(request, 200, self._manifest, self._kind)
        elif (blob := self._blobs.get(request.path.rpartition("/")[2])) is not None:
            self._answer(request, 200, blob, "application/octet-stream")
        else:
            self._answer(request, 404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}')

    def _answer(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        kind: str = "application/json",
        *,
        challenge: bool = False,
    ) -> None:
        request.send_response(status)
        request.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Docker-Content-Digest", _digest(body))
        if challenge:
            request.send_header("WWW-Authenticate", 'Basic realm="tests"')
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def _layer(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("content")
        entry.size = len(content)
        entry.mode = 0o755
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
