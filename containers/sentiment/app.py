"""sentiment: tells the mood of an English text.

It takes {"text": "...", ...} and gives it back with "sentiment": {"compound", "positive", "neutral", "negative"}.
Compound runs from -1 (most negative) to 1; the other three are shares that add up to 1. All are means over the
sentences, as VADER was made for sentences.
"""

import asyncio
import logging
import os
import re
from statistics import fmean
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

ANALYZER = SentimentIntensityAnalyzer()
SENTENCE = re.compile(r"[^.!?]{1,1000}[.!?]*")  # cut at 1000 characters, because VADER's time grows with the square


def sentiment(text: str) -> dict[str, float]:
    scores = [ANALYZER.polarity_scores(sentence) for sentence in SENTENCE.findall(text) if sentence.strip()]
    names = {"compound": "compound", "positive": "pos", "neutral": "neu", "negative": "neg"}
    return {name: round(fmean(score[short] for score in scores), 4) if scores else 0.0 for name, short in names.items()}


async def service_output(request: web.Request) -> web.Response:
    data = await read(request)
    return web.json_response(data | {"sentiment": await asyncio.to_thread(sentiment, data["text"])})


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
    return web.json_response({"service": "sentiment", "about": "tells the mood of an English text"})


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
