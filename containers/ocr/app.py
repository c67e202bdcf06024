"""ocr: reads the text of an image.

It takes {"image": "<a PNG or JPEG in base64>", ...} and gives back, in place of the image, "text", the lines from top
to bottom, and "lines": [{"text": "...", "score": 0.98, "box": [[x, y], ...]}, ...], where score is the certainty
from 0 to 1 and box the four corners in pixels.
"""

import asyncio
import base64
import io
import logging
import os
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from PIL import Image
from rapidocr_onnxruntime import RapidOCR

Image.MAX_IMAGE_PIXELS = 20_000_000  # Pillow warns above this and refuses twice as many; A4 at 600 dpi has 35 million
MAX_BODY_BYTES = 32 * 2**20
SMALL = 800  # an image with fewer pixels on both sides is enlarged: in small letters the engine misses spaces
ENGINE = RapidOCR(det_limit_side_len=480)  # small images are enlarged to this; the default 736 is slow on narrow ones
ONE_AT_A_TIME = asyncio.Lock()  # the engine keeps state during a call, and one call uses all processors


def open_image(encoded: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded)), formats=["PNG", "JPEG"])
        return image.convert("RGB")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise web.HTTPBadRequest(text=f"image is not a PNG or JPEG in base64: {error}") from None


def read_lines(image: Image.Image) -> list[dict[str, Any]]:
    zoom = 2 if max(image.size) < SMALL else 1
    found, _ = ENGINE(image.resize((image.width * zoom, image.height * zoom), Image.Resampling.LANCZOS))
    return [
        {"text": text, "score": round(float(score), 4), "box": [[x / zoom, y / zoom] for x, y in box]}
        for box, text, score in found or []
    ]


async def service_output(request: web.Request) -> web.Response:
    data = await read(request)
    image = await asyncio.to_thread(open_image, data.pop("image"))
    async with ONE_AT_A_TIME:
        lines = await asyncio.to_thread(read_lines, image)
    return web.json_response(data | {"text": "\n".join(line["text"] for line in lines), "lines": lines})


async def read(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"the body is not JSON: {error}") from None
    match body:
        case {"requires_proof": True}:
            raise web.HTTPBadRequest(text="this service makes no proofs")
        case {"data": {"image": str()} as data}:
            return dict(data)
    raise web.HTTPBadRequest(text='data must be an object with a string "image"')


async def about(_: web.Request) -> web.Response:
    return web.json_response({"service": "ocr", "about": "reads the text of an image"})


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
    app = web.Application(middlewares=[errors_as_json], client_max_size=MAX_BODY_BYTES)
    app.add_routes([web.get("/", about), web.post("/service_output", service_output)])
    return app


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "3000"))
    web.run_app(make_app(), host=host, port=port, shutdown_timeout=1)
