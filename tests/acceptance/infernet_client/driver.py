"""Runs the real infernet-client for the tests, in its own environment: its library and its command line.

One request a line on standard input, one answer a line on standard output, both JSON:

    {"call": "request_job", "args": [{...}]}      {"value": ...} or {"raised": "APIError", "text": ..., ...}
    {"command": ["job", "-c", "a"], "stdin": ""}  {"code": 0, "out": ..., "err": ...}

Importing the client takes seconds, hence one process for all of them. A command runs in a fork of it.
"""

import asyncio
import json
import os
import sys
import tempfile
from typing import Any

from aiohttp import ClientError
from infernet_client import NodeClient
from infernet_client.chain.rpc import RPC
from infernet_client.chain.subscription import Subscription
from infernet_client.cli import cli
from infernet_client.error import APIError

KEY = "0x" + "11" * 32


async def call(client: NodeClient, name: str, args: list[Any], options: dict[str, Any]) -> Any:
    if name == "request_stream":
        parts = [part async for part in client.request_stream(*args, **options)]
        return [part.decode("latin-1") if isinstance(part, bytes) else {"id": part} for part in parts]
    if name == "request_delegated_subscription":
        rpc_url, subscription = args
        rpc = RPC(rpc_url)
        address = rpc.get_checksum_address("0x" + "22" * 20)
        return await client.request_delegated_subscription(
            Subscription(**subscription), rpc, address, expiry=2**32 - 1, nonce=0, private_key=KEY, data={}
        )
    return await getattr(client, name)(*args, **options)


def library(url: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = (request["call"], request.get("args", []), request.get("options", {}))
        return {"value": asyncio.run(call(NodeClient(url), *arguments))}
    except APIError as error:
        told = {"status_code": error.status_code, "message": error.message, "params": error.params}
        return {"raised": "APIError", "text": str(error), **told}
    except (ClientError, TimeoutError) as error:
        return {"raised": type(error).__name__, "text": str(error)}


def command(url: str, request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        stdin.write(request.get("stdin", "").encode())
        child = os.fork()
        if not child:
            for number, file in enumerate((stdin, out, err)):
                file.seek(0)
                os.dup2(file.fileno(), number)
            os.environ["SERVER_URL"] = url
            sys.stdin = os.fdopen(0)
            sys.argv = ["infernet-client", *request["command"]]
            cli()  # exits
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "out": out.read().decode(), "err": err.read().decode()}


for line in sys.stdin:
    asked = json.loads(line)
    answer = library(sys.argv[1], asked) if "call" in asked else command(sys.argv[1], asked)
    print(json.dumps(answer), flush=True)
