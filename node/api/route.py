"""One route of the API as a value: how it is called, by whom, what it takes, and what it answers.

A door's `routes()` is a list of these and reads as its contents. The same list is served (`serve`), described to
clients (`openapi`) and asked who may (`entry`): a route without a description, or open by mistake, cannot be.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web
from aiohttp.typedefs import Handler

from node.errors import Refusal
from node.jobs import Role

JSON = "application/json"
READING = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What a request says outside of its body. kind: a type, as pydantic reads them; `pattern` is of its text.

    In a path the pattern is what makes the route match.
    """

    name: str
    where: Literal["path", "query", "header"]
    about: str
    kind: Any = str
    pattern: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A JSON body. kind: a type, as pydantic reads them. examples: by name."""

    kind: Any
    examples: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What comes with one status. kind and examples as in `Body`.

    leads_to: names of routes that take the `id` of this answer.
    """

    about: str
    kind: Any
    examples: Mapping[str, Any]
    media: str = JSON
    leads_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """name: unique, and what generated clients call it; never changed. The handler's docstring tells the details.

    role: the smallest that may; None: everybody, without a key. errors: examples of what it refuses, beside what every
    route with a role does (401, 403, 429, 503).
    """

    method: str
    path: str
    handler: Handler
    name: str
    tag: str
    summary: str
    role: Role | None
    answers: Mapping[int, Answer]
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    errors: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is asked of whoever comes this way. path: without what is variable in it; empty when there is no route.
    role: the smallest that may; None: everybody, without a key."""

    path: str
    role: Role | None


class Entries:
    """What each route asks, put together once."""

    def __init__(self, routes: Iterable[Route], served: Iterable[web.AbstractRoute]) -> None:
        known = {(route.method, route.path): Entry(path=route.path, role=route.role) for route in routes}
        self._open = {entry.path for entry in known.values() if entry.role is None}
        self._by_route = {
            each: known[_method(each.method), each.resource.canonical] for each in served if each.resource
        }

    def of(self, request: web.Request) -> Entry:
        """What is not there needs a role all the same, unless something on its path needs none."""
        known = self._by_route.get(request.match_info.route)
        if known is not None:
            return known
        if request.path in self._open:
            return Entry(path="", role=None)
        return Entry(path="", role=Role.READ if request.method in READING else Role.SUBMIT)


def _method(served: str) -> str:
    """The framework answers HEAD where there is a GET."""
    return "GET" if served == "HEAD" else served


ENTRIES: web.AppKey[Entries] = web.AppKey("entries", Entries)


def serve(app: web.Application, routes: Sequence[Route]) -> None:
    """Add the routes to an application, and what they ask."""
    app.add_routes(web.route(route.method, _matching(route), route.handler) for route in routes)
    app[ENTRIES] = Entries(routes, app.router.routes())


def _matching(route: Route) -> str:
    path = route.path
    for each in route.parameters:
        if each.where == "path":
            path = path.replace(f"{{{each.name}}}", f"{{{each.name}:{each.pattern}}}")
    return path


def entry(request: web.Request) -> Entry:
    """What the request's route asks of its caller."""
    return request.app[ENTRIES].of(request)
