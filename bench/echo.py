"""The yardstick for a container: a service on the container contract that answers its input byte for byte."""

import sys

import msgspec
import uvloop
from aiohttp import web


class Envelope(msgspec.Struct):
    data: msgspec.Raw


decoder = msgspec.json.Decoder(Envelope)


async def output(request: web.Request) -> web.Response:
    envelope = decoder.decode(await request.read())
    return web.Response(body=bytes(envelope.data), content_type="application/json")


async def index(request: web.Request) -> web.Response:
    return web.Response(body=b"{}", content_type="application/json")


def main(port: int) -> None:
    app = web.Application()
    app.add_routes([web.get("/", index), web.post("/service_output", output)])
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(int(sys.argv[1]))
