"""HTTPS by configuration, and what is said when the files are of no use."""

import asyncio
import json
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.support import Echo, Node, free_port, stoker


def certificate(folder: Path, name: str = "node") -> tuple[Path, Path]:
    """A certificate for this machine that signs itself, and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-batch",
    ]
    options = ["-days", "2", "-subj", "/CN=localhost", "-addext", names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return cert, key


async def test_jobs_over_https_and_nothing_else(tmp_path: Path, echo: Echo) -> None:
    cert, key = certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=cert)
    node = Node(
        tmp_path, echo.containers("a"), server={"tls_cert": str(cert), "tls_key": str(key), "request_timeout_s": 1}
    )
    node.url = node.url.replace("http://", "https://")
    node.tls = trusted
    async with node:
        assert node.events("node_started")[0]["url"] == node.url
        assert (await node.run(["a"], {"x": 2**200}))["result"]["output"] == {"x": 2**200}
        await _no_plain_http(node.port)
        await _no_old_tls(node.port, cert)
        await _no_half_handshake(node.port)
        assert (await node.run(["a"], {"x": 1}))["status"] == "success"
        assert node.events("server_failed") == []
        assert "Traceback" not in node.log.read_text()


async def _no_plain_http(port: int) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://127.0.0.1:{port}/health")


async def _no_old_tls(port: int, cert: Path) -> None:
    old = ssl.create_default_context(cafile=cert)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", port, ssl=old)


async def _no_half_handshake(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\x16\x03\x01\x02\x00")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


def _start(folder: Path, **server: str) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps({"data_dir": str(folder / "data"), "server": {"port": free_port(), **server}}))
    ended = stoker("serve", "--config", str(file))
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_files_of_no_use_stop_the_start_and_are_named(tmp_path: Path) -> None:
    cert, key = map(str, certificate(tmp_path))
    _, other = map(str, certificate(tmp_path, "other"))
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    told = {
        f"server.tls_cert {tmp_path}/none.crt: No such file or directory": {
            "tls_cert": f"{tmp_path}/none.crt",
            "tls_key": key,
        },
        f"server.tls_key {tmp_path}: Is a directory": {"tls_cert": cert, "tls_key": str(tmp_path)},
        f"server.tls_cert {cert} with server.tls_key {other}: the key is not the certificate's": {
            "tls_cert": cert,
            "tls_key": other,
        },
        f"server.tls_cert {empty} with server.tls_key {key}: not": {"tls_cert": str(empty), "tls_key": key},
        "server.tls_cert is given without server.tls_key": {"tls_cert": cert},
        "server.tls_key is given without server.tls_cert": {"tls_key": key},
    }
    for words, server in told.items():
        assert words in " ".join(_start(tmp_path, **server).split())
