"""Keeps web pages of other sites from using this node through the browser of somebody who can reach it.

A page can send requests anywhere, so one that names another site as its origin changes nothing here. And a page's own
name can be made to point at this node (DNS rebinding), so a node without keys answers to names that are its own only.
No answer has a CORS header: a page never reads from another site, and a browser asks in vain before it sends JSON.
"""

from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from node.api.middleware import Rule
from node.api.reply import shown
from node.api.route import READING, entry
from node.config import Server
from node.errors import Forbidden
from node.jobs import Caller

SETTING = "server.allowed_hosts"


def own_site(settings: Server) -> Rule:
    """Raises `Forbidden` for what the page of another site may ask for."""
    named = frozenset(name.lower() for name in settings.allowed_hosts or ())
    any_name = "*" in named or (settings.allowed_hosts is None and settings.reachable)
    own = named | {settings.host.lower()}

    @lru_cache(maxsize=256)
    def is_own(host: str) -> bool:
        name = _name(host)
        return any_name or name in own or _is_loopback(name)

    def check(request: web.Request, caller: Caller) -> None:
        host = request.headers.get("Host", "")
        anonymous = caller.id == caller.address
        if anonymous and not is_own(host) and entry(request).role is not None:
            raise Forbidden("Host not allowed", host=shown(host), setting=SETTING)
        origin = request.headers.get("Origin")
        if origin is not None and request.method not in READING:
            netloc = origin.partition("://")[2].lower()
            if netloc != host.lower() and _name(netloc) not in named:
                raise Forbidden("Request from another site", origin=shown(origin), setting=SETTING)

    return check


def _name(host: str) -> str:
    """`Name:80`, `name.` and `[::1]:80` as `name`, `name` and `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
