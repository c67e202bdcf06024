"""An echo container that takes its time, and knows how many calls it had at once."""

import asyncio
import sys

import uvloop
from aiohttp import web

from bench.echo import decoder, index


class Slow:
    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._running = 0
        self._most = 0

    async def output(self, request: web.Request) -> web.Response:
        self._running += 1
        self._most = max(self._most, self._running)
        try:
            envelope = decoder.decode(await request.read())
            await asyncio.sleep(self._wait_s)
        finally:
            self._running -= 1
        return web.Response(body=bytes(envelope.data), content_type="application/json")

    async def most(self, request: web.Request) -> web.Response:
        """The largest number of calls at once since this was asked before."""
        most, self._most = self._most, self._running
        return web.json_response(most)


def main(port: int, wait_s: float) -> None:
    slow = Slow(wait_s)
    app = web.Application()
    app.add_routes([web.get("/", index), web.get("/most", slow.most), web.post("/service_output", slow.output)])
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
