from typing import Any

from aiohttp import web
from aiohttp.test_utils import AioHTTPTestCase
from app import make_app


class Sentiment(AioHTTPTestCase):
    async def get_application(self) -> web.Application:
        return make_app()

    async def call(self, data: Any, **more: Any) -> tuple[int, Any]:
        body = {"source": 1, "destination": 1, "data": data, "requires_proof": False} | more
        async with self.client.post("/service_output", json=body) as response:
            return response.status, await response.json()

    async def test_tells_good_from_bad_and_passes_on_what_it_got(self) -> None:
        for text, low, high in (
            ("What a wonderful day! I love it.", 0.5, 1.0),
            ("This is terrible. I hate it.", -1.0, -0.4),
            ("The train has nine cars.", 0.0, 0.0),
        ):
            data = {"text": text, "page": 7}
            status, answer = await self.call(data)
            assert status == 200
            mood = answer.pop("sentiment")
            assert answer == data
            assert low <= mood["compound"] <= high
            assert abs(mood["positive"] + mood["neutral"] + mood["negative"] - 1) < 0.01

    async def test_has_no_mood_for_nothing(self) -> None:
        _, answer = await self.call({"text": " "})
        assert answer["sentiment"] == {"compound": 0.0, "positive": 0.0, "neutral": 0.0, "negative": 0.0}

    async def test_refuses_what_it_cannot_work_on(self) -> None:
        useless: list[Any] = [{}, {"text": 1}, [], "0af1", None]
        for data in useless:
            status, fault = await self.call(data)
            assert (status, fault["code"], fault["name"]) == (400, "400", "Bad Request")
        status, fault = await self.call({"text": "x"}, requires_proof=True)
        assert (status, fault["description"]) == (400, "this service makes no proofs")

    async def test_says_what_it_is(self) -> None:
        async with self.client.get("/") as response:
            assert response.status == 200
            assert (await response.json())["service"] == "sentiment"
