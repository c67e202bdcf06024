"""keywords: finds the phrases that say what a text is about.

It takes {"text": "...", ...} and gives it back with "keywords": [{"phrase": "great civil war", "score": 0.063}, ...],
the best first: the lower the score, the better. The language service's "language", if there, chooses the stop words;
without it the text is taken for English.
"""

import asyncio
import logging
import os
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from yake import KeywordExtractor


def keywords(text: str, language: str) -> list[dict[str, Any]]:
    extractor = KeywordExtractor(lan=language, n=3, top=10)  # quick to make, and it keeps what it learns of a text
    return [{"phrase": phrase, "score": round(float(score), 6)} for phrase, score in extractor.extract_keywords(text)]


async def service_output(request: web.Request) -> web.Response:
    data = await read(request)
    match data:
        case {"language": {"code": str(language)}}:
            pass
        case _:
            language = "en"
    return web.json_response(data | {"keywords": await asyncio.to_thread(keywords, data["text"], language)})


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
    return web.json_response({"service": "keywords", "about": "finds the phrases that say what a text is about"})


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
