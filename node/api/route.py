"""One route of the API as a value: how it is called, by whom, what it takes, and what it answers.

A door's `routes()` is a list of these and reads as its contents. The same list is served (`serve`), described to
clients (`openapi`) and asked who may (`needed`): a route without a description, or open by mistake, cannot be.
"""

from collections.abc import Iterable, Mapping
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


Needs = Mapping[str, Mapping[str, Role | None]]
NEEDS: web.AppKey[Needs] = web.AppKey("needs", Needs)
"""The role that is needed, by path and method."""


def serve(app: web.Application, routes: Iterable[Route]) -> None:
    """Add the routes to an application, and who may use them."""
    needs: dict[str, dict[str, Role | None]] = {}
    for route in routes:
        app.add_routes([web.route(route.method, _matching(route), route.handler)])  # of a GET: HEAD as well
        needs.setdefault(route.path, {})[route.method] = route.role
    app[NEEDS] = needs


def _matching(route: Route) -> str:
    path = route.path
    for each in route.parameters:
        if each.where == "path":
            path = path.replace(f"{{{each.name}}}", f"{{{each.name}:{each.pattern}}}")
    return path


def pattern_of(request: web.Request) -> str:
    """The path of the route, without what is variable in it; empty when there is none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else ""


def needed(request: web.Request) -> Role | None:
    """The role that the request's route needs, None where no key is. What is not there needs one all the same."""
    path = pattern_of(request) or request.path  # of a method that is not there, the framework tells no pattern
    known = request.app[NEEDS].get(path, {})
    method = "GET" if request.method == "HEAD" else request.method
    if method in known:
        return known[method]
    if None in known.values():
        return None
    return Role.READ if method in READING else Role.SUBMIT
