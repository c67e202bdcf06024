from aiohttp import web
from aiohttp.test_utils import AioHTTPTestCase
from app import make_app


class HelloWorld(AioHTTPTestCase):
    async def get_application(self) -> web.Application:
        return make_app()

    async def test_repeats_the_whole_body_as_python_prints_it(self) -> None:
        body = {"source": 1, "destination": 1, "data": {"n": 2**256 - 1, "s": "é"}, "requires_proof": False}
        async with self.client.post("/service_output", json=body) as response:
            assert response.status == 200
            assert await response.json() == {"output": f"hello, world!, your input was: {body}"}

    async def test_refuses_a_body_that_is_not_json(self) -> None:
        async with self.client.post("/service_output", data=b"{") as response:
            assert response.status == 400
            fault = await response.json()
            assert (fault["code"], fault["name"]) == ("400", "Bad Request")
            assert fault["description"].startswith("the body is not JSON: ")

    async def test_says_what_it_is(self) -> None:
        async with self.client.get("/") as response:
            assert response.status == 200
            assert (await response.json())["service"] == "hello-world"
