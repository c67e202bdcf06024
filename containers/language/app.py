"""language: tells in which language a text is written.

It takes {"text": "...", ...} and gives it back with "language": {"code": "en", "probability": 0.98}.
The code is ISO 639-1's, or "und" (undetermined) if the text is too short to tell.
"""

import asyncio
import logging
import os
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from py3langid.langid import MODEL_FILE, LanguageIdentifier

IDENTIFIER = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)


def language(text: str) -> dict[str, Any]:
    code, probability = IDENTIFIER.classify(text, datatype="uint32")  # wide enough to count in a text of any length
    return {"code": code if probability > 0.2 else "und", "probability": round(float(probability), 4)}


async def service_output(request: web.Request) -> web.Response:
    data = await read(request)
    return web.json_response(data | {"language": await asyncio.to_thread(language, data["text"])})


async def read(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"the body is not JSON: {error}") from None
    match body:
        case {"requires_proof": True}:
            raise web.HTTPBadRequest(text="this service makes no proofs")
        case {"data": {"text": str()} as data}:
            return dict(data)
    raise web.HTTPBadRequest(text='data must be an object with a string "text"')


async def about(_: web.Request) -> web.Response:
    return web.json_response({"service": "language", "about": "tells in which language a text is written"})


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        fault = error
    except Exception as error:
        logging.exception("the call failed")
        fault = web.HTTPInternalServerError(text=f"{type(error).__name__}: {error}")
    answer = {"code": str(fault.status), "name": fault.reason, "description": fault.text}
    return web.json_response(answer, status=fault.status)


def make_app() -> web.Application:
    app = web.Application(middlewares=[errors_as_json])
    app.add_routes([web.get("/", about), web.post("/service_output", service_output)])
    return app


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "3000"))
    web.run_app(make_app(), host=host, port=port, shutdown_timeout=1)
