"""The yardstick for a door: an aiohttp handler that parses a job's body and answers an id, and does nothing else."""

import sys
import uuid

import msgspec
import uvloop
from aiohttp import web


class Body(msgspec.Struct):
    containers: list[str]
    data: msgspec.Raw


decoder = msgspec.json.Decoder(Body)
encoder = msgspec.json.Encoder()


async def submit(request: web.Request) -> web.Response:
    decoder.decode(await request.read())
    return web.Response(body=encoder.encode({"id": str(uuid.uuid4())}), content_type="application/json")


async def index(request: web.Request) -> web.Response:
    return web.Response(body=b"{}", content_type="application/json")


def main(port: int) -> None:
    app = web.Application()
    app.add_routes([web.get("/", index), web.post("/api/jobs", submit)])
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(int(sys.argv[1]))
