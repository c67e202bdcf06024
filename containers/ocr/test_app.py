import asyncio
import base64
import io
import re
from typing import Any

import cv2
from aiohttp import web
from aiohttp.test_utils import AioHTTPTestCase
from app import make_app
from PIL import Image, ImageDraw, ImageFont


def page(*lines: str, kind: str = "PNG") -> str:
    image = Image.new("L", (480, 240), "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text((40, 30 + 60 * row), line, "black", ImageFont.load_default(36))
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


class Ocr(AioHTTPTestCase):
    async def get_application(self) -> web.Application:
        return make_app()

    async def call(self, data: Any, **more: Any) -> tuple[int, Any]:
        body = {"source": 1, "destination": 1, "data": data, "requires_proof": False} | more
        async with self.client.post("/service_output", json=body) as response:
            return response.status, await response.json()

    async def test_reads_the_lines_and_passes_on_the_rest(self) -> None:
        status, answer = await self.call({"image": page("Four score and seven", "our fathers brought"), "page": 7})
        assert status == 200
        assert set(answer) == {"page", "text", "lines"}
        assert answer["text"].replace(" ", "") == "Fourscoreandseven\nourfathersbrought"  # it misses some spaces
        first, second = answer["lines"]
        assert first["score"] > 0.8
        assert first["box"][0][1] < second["box"][0][1]

    async def test_keeps_pages_read_at_the_same_time_apart(self) -> None:
        png, jpeg, blank = await asyncio.gather(
            self.call({"image": page("nation")}),
            self.call({"image": page("liberty", kind="JPEG")}),
            self.call({"image": page()}),
        )
        assert (png[1]["text"], jpeg[1]["text"]) == ("nation", "liberty")
        assert blank == (200, {"text": "", "lines": []})

    async def test_refuses_what_it_cannot_work_on(self) -> None:
        words = base64.b64encode(b"no image").decode()
        cut = page("half")[:400]
        images: list[Any] = [1, "/etc/hostname", words, cut]
        for data in [{}, "0af1", None, *({"image": image} for image in images)]:
            status, fault = await self.call(data)
            assert (status, fault["code"], fault["name"]) == (400, "400", "Bad Request"), data
        status, fault = await self.call({"image": page()}, requires_proof=True)
        assert (status, fault["description"]) == (400, "this service makes no proofs")

    def test_needs_no_desktop(self) -> None:
        assert re.search(r"GUI: +NONE", cv2.getBuildInformation())

    async def test_says_what_it_is(self) -> None:
        async with self.client.get("/") as response:
            assert response.status == 200
            assert (await response.json())["service"] == "ocr"
