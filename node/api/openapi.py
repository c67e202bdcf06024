"""`GET /openapi.json`: the API as an OpenAPI 3.1 document, made from the routes that are served and their shapes."""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from node import __version__
from node.api import examples, shapes
from node.api.middleware import REQUEST_ID
from node.api.reply import STATUS, reply
from node.api.route import JSON, READING, Answer, Body, Parameter, Route
from node.errors import Refusal
from node.jobs import Role

ABOUT = """
A job names a **chain of containers**; the node feeds each one's output to the next, and keeps every result.

- An id is answered only after the job is on disk.
- `data` and `output` travel as the text that they came in: no number is rounded, no key moved.
- Every error is `{"error", "params"}`. A 500 is a fault of the node; its `request_id` is in the node's log.
- Where the node has API keys, each request shows one: `Authorization: Bearer KEY`. A key has a role, `read`, `submit`
  or `admin`; each may also do what those before it may. Jobs belong to the key's name; without keys, to the address.
- Every route that takes `GET` takes `HEAD`. What is no proper HTTP is 400, a path or a header that is too long 414 or
  431, and then the connection is closed; so it is after 408.
"""
TAGS = {
    "jobs": "Send jobs, and collect their results.",
    "node": "What runs here.",
    "health": "For whoever watches the node; without a key.",
}
MEANINGS = {
    400: "The request is wrong; nothing was done.",
    401: "A valid API key is needed.",
    403: "The caller may not do this.",
    404: "There is no such thing, or it is another caller's.",
    408: "The request did not come whole in time.",
    409: "Not possible in the state that the job is in.",
    413: "More than the node takes at once.",
    415: "The body is not declared as JSON in UTF-8.",
    422: "The `Idempotency-Key` was used for another request.",
    429: "Too many requests, or jobs, of this caller.",
    503: "The node cannot do it now. Try again; a submit best with the `Idempotency-Key` that it had.",
}
HEADERS = {
    REQUEST_ID: ("Name of the request in the node's log: the one that came with it, or a new one.", "string"),
    "RateLimit-Limit": ("Where there is a limit: how many requests to this route it is.", "integer"),
    "RateLimit-Remaining": ("How many more may come now.", "integer"),
    "RateLimit-Reset": ("Seconds until there are more.", "integer"),
    "Retry-After": ("Seconds until it is worth another try.", "integer"),
    "WWW-Authenticate": ("`Bearer`.", "string"),
}
ALWAYS = Parameter(
    name=REQUEST_ID,
    where="header",
    about="A name for the request: up to 128 letters, digits, `.`, `_` or `-`. Another is not looked at.",
)


class OpenApi:
    """The door to the document. It describes all routes that it is given, and its own."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._document = document([*routes, *self.routes()])  # takes some 50 ms: not while others are served

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/openapi.json",
                handler=self.document,
                name="get_openapi",
                tag="node",
                summary="This document",
                role=None,
                answers={200: Answer(about="OpenAPI 3.1.", kind=dict[str, Any], examples={})},
            )
        ]

    async def document(self, request: web.Request) -> web.StreamResponse:
        """Made from the routes that this node serves."""
        return reply(self._document)


def document(routes: Iterable[Route]) -> dict[str, Any]:
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stoker", "version": __version__, "description": ABOUT.strip()},
        "tags": [{"name": name, "description": about} for name, about in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.named,
            "headers": {name: _header(about, kind) for name, (about, kind) in HEADERS.items()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Only where the node has API keys."}
            },
        },
    }


class _Schemas:
    """JSON Schemas of types; what has a name is kept once, for all."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}
        self._of: dict[Any, dict[str, Any]] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        if kind not in self._of:
            self._of[kind] = self._made(kind)
        return self._of[kind]

    def _made(self, kind: Any) -> dict[str, Any]:
        made, named = TypeAdapter.json_schemas(
            [("it", "validation", TypeAdapter(kind))],
            ref_template="#/components/schemas/{model}",
            schema_generator=_Plain,
        )
        self.named |= named.get("$defs", {})
        return made["it", "validation"]


class _Plain(GenerateJsonSchema):
    """Without a title at each field that repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": _described(route),
        "security": [] if route.role is None else [{"key": [route.role.value]}],
        "parameters": [_parameter(each, schemas) for each in (*route.parameters, ALWAYS)],
        "responses": _answers(route, schemas) | _errors(route, schemas),
    }
    if route.body:
        shown["requestBody"] = {"required": True, "content": {JSON: _content(route.body, schemas)}}
    return shown


def _described(route: Route) -> str:
    who = "Without a key." if route.role is None else f"Role: `{route.role}`."
    return f"{inspect.getdoc(route.handler) or ''}\n\n{who}".strip()


def _parameter(each: Parameter, schemas: _Schemas) -> dict[str, Any]:
    pattern = {"pattern": f"^{each.pattern}$"} if each.pattern else {}
    return {
        "name": each.name,
        "in": each.where,
        "required": each.where == "path",
        "description": each.about,
        "schema": schemas.of(each.kind) | pattern,
    }


def _content(told: Body | Answer, schemas: _Schemas) -> dict[str, Any]:
    shown = {name: {"value": value} for name, value in told.examples.items()}
    return {"schema": schemas.of(told.kind)} | ({"examples": shown} if shown else {})


def _answers(route: Route, schemas: _Schemas) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for status, answer in route.answers.items():
        content = {answer.media: _content(answer, schemas)}
        shown[str(status)] = {"description": answer.about, "headers": _headers(route, status), "content": content}
        if answer.leads_to:
            found = {"id": "$response.body#/id"}
            links = {name: {"operationId": name, "parameters": found} for name in answer.leads_to}
            shown[str(status)]["links"] = links
    return shown


def _errors(route: Route, schemas: _Schemas) -> dict[str, Any]:
    by_status: dict[int, dict[str, Any]] = {}
    for refusal in (*route.errors, *_of_all(route)):
        name = re.sub(r"\W+", "_", refusal.message.lower()).strip("_")
        by_status.setdefault(STATUS[refusal.code], {})[name] = shapes.error(refusal)
    return {
        str(status): {
            "description": MEANINGS[status],
            "headers": _headers(route, status),
            "content": {JSON: _content(Body(kind=shapes.Error, examples=named), schemas)},
        }
        for status, named in sorted(by_status.items())
    }


def _of_all(route: Route) -> list[Refusal]:
    """What any route of this kind refuses, whatever it does."""
    if route.role is None:
        return []
    refused: list[Refusal] = [examples.NO_KEY, examples.OTHER_HOST, examples.TOO_MANY_REQUESTS, examples.NO_STORE]
    if route.role is not Role.READ:  # every key may read
        refused.append(examples.SMALL_KEY)
    if route.method not in READING:
        refused.append(examples.OTHER_SITE)
    return refused


def _headers(route: Route, status: int) -> dict[str, Any]:
    names = [REQUEST_ID]
    if route.role is not None:
        names += [name for name in HEADERS if name.startswith("RateLimit-")]
    if status in (429, 503):
        names.append("Retry-After")
    if status == 401:
        names.append("WWW-Authenticate")
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _header(about: str, kind: str) -> dict[str, Any]:
    return {"description": about, "schema": {"type": kind}}
