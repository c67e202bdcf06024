import io
from typing import Any

from aiohttp import web
from aiohttp.test_utils import AioHTTPTestCase
from app import make_app


class Language(AioHTTPTestCase):
    async def get_application(self) -> web.Application:
        return make_app()

    async def call(self, data: Any, **more: Any) -> tuple[int, Any]:
        body = {"source": 1, "destination": 1, "data": data, "requires_proof": False} | more
        async with self.client.post("/service_output", json=body) as response:
            return response.status, await response.json()

    async def test_tells_the_language_and_passes_on_what_it_got(self) -> None:
        for code, text in {
            "en": "Now we are engaged in a great civil war.",
            "de": "Der Wind weht heute stark aus Norden.",
            "fr": "Les enfants jouent dans le jardin.",
            "und": "",
        }.items():
            data = {"text": text, "page": 7}
            status, answer = await self.call(data)
            assert status == 200
            language = answer.pop("language")
            assert answer == data
            assert language["code"] == code
            assert (language["probability"] > 0.9) == (code != "und")

    async def test_refuses_what_it_cannot_work_on(self) -> None:
        useless: list[Any] = [{}, {"text": 1}, [], "0af1", None]
        for data in useless:
            assert await self.call(data) == (
                400,
                {"code": "400", "name": "Bad Request", "description": 'data must be an object with a string "text"'},
            )
        status, fault = await self.call({"text": "x"}, requires_proof=True)
        assert (status, fault["description"]) == (400, "this service makes no proofs")

    async def test_tells_every_fault_as_json(self) -> None:
        async with self.client.post("/service_output", data=b"{") as response:
            assert (response.status, (await response.json())["code"]) == (400, "400")
        async with self.client.post("/service_output", data=io.BytesIO(b" " * 2**21)) as response:
            assert (response.status, (await response.json())["code"]) == (413, "413")
        async with self.client.get("/nowhere") as response:
            assert (await response.json())["name"] == "Not Found"

    async def test_says_what_it_is(self) -> None:
        async with self.client.get("/") as response:
            assert response.status == 200
            assert (await response.json())["service"] == "language"
