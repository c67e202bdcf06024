from typing import Any

from aiohttp import web
from aiohttp.test_utils import AioHTTPTestCase
from app import make_app

TEXT = "Now we are engaged in a great civil war. A great civil war tests a nation. The nation endures a civil war."


class Keywords(AioHTTPTestCase):
    async def get_application(self) -> web.Application:
        return make_app()

    async def call(self, data: Any, **more: Any) -> tuple[int, Any]:
        body = {"source": 1, "destination": 1, "data": data, "requires_proof": False} | more
        async with self.client.post("/service_output", json=body) as response:
            return response.status, await response.json()

    async def test_finds_phrases_best_first_and_passes_on_what_it_got(self) -> None:
        data = {"text": TEXT, "language": {"code": "en", "probability": 1.0}, "page": 7}
        status, answer = await self.call(data)
        assert status == 200
        found = answer.pop("keywords")
        assert answer == data
        assert "great civil war" in [keyword["phrase"] for keyword in found]
        scores = [keyword["score"] for keyword in found]
        assert scores == sorted(scores)

    async def test_takes_the_stop_words_of_the_detected_language(self) -> None:
        text = "Der Zug nach Norden und der Zug nach Osten. Der Zug steht."
        for language, knows_stop_words in (("de", True), ("en", False)):
            _, answer = await self.call({"text": text, "language": {"code": language}})
            phrases = {keyword["phrase"] for keyword in answer["keywords"]}
            assert ("Der Zug" not in phrases) == knows_stop_words

    async def test_finds_nothing_in_nothing(self) -> None:
        assert await self.call({"text": "", "language": {"code": "und"}}) == (
            200,
            {"text": "", "language": {"code": "und"}, "keywords": []},
        )

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
            assert (await response.json())["service"] == "keywords"
