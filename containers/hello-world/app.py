"""hello-world: greets and repeats what it was sent, the whole body of the call. The smallest service there is."""

import os

from aiohttp import web


async def service_output(request: web.Request) -> web.Response:
    try:
        body = await request.json()
    except ValueError as error:
        fault = {"code": "400", "name": "Bad Request", "description": f"the body is not JSON: {error}"}
        return web.json_response(fault, status=400)
    return web.json_response({"output": f"hello, world!, your input was: {body}"})


async def about(_: web.Request) -> web.Response:
    return web.json_response({"service": "hello-world", "about": "greets and repeats what it was sent"})


def make_app() -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/", about), web.post("/service_output", service_output)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host=os.environ.get("HOST", "0.0.0.0"), port=int(os.environ.get("PORT", "3000")))
