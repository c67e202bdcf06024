"""Who calls: an API key's name, or the address, seen through the proxies that are trusted. And what a route asks for.

Keys are needed when the configuration says so, when others can reach the node (unless `server.insecure`), and from the
moment the store has had one. Nothing that happens to the store later lets anybody in without one.
"""

from base64 import b64decode
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address

import structlog
from aiohttp import web

from node.api.route import entry
from node.config import Server
from node.errors import Unauthorized, Unavailable
from node.guardian import demand, within
from node.jobs import Caller
from node.store import Access
from node.store.access import PREFIX

log = structlog.get_logger()

MAX_HOPS = 32  # of a forwarded request; what stands before them is not looked at
WITHOUT_STORE = ("/metrics", "/info")


class Identity:
    """Tells who a request's caller is."""

    def __init__(self, access: Access, settings: Server) -> None:
        self._access = access
        self._always = settings.require_keys or (settings.reachable and not settings.insecure)
        self._proxies = settings.trusted_proxies

    async def caller(self, request: web.Request) -> Caller:
        """Raises `Unauthorized` without a valid key, `Forbidden` when its role is too small for the route."""
        address = self.address(request)
        if self._access.keyless and not self._always and "Authorization" not in request.headers:
            return _nobody(address)
        asked = entry(request)
        if asked.role is None:
            return _nobody(address)
        path = asked.path
        secret = _secret(request.headers.getall("Authorization", []))
        if not await self._needs_key(path) and not secret.startswith(PREFIX):
            return _nobody(address)
        key = await self._access.find(secret)
        if key:
            caller = Caller(id=key.name, address=address, role=key.role)
            demand(caller, asked.role)
            return caller
        if not await self._needs_key(path):
            return _nobody(address)
        log.info("caller_refused", address=address, method=request.method, code=Unauthorized.code)
        raise Unauthorized("A valid API key is needed, as `Authorization: Bearer KEY`")

    async def _needs_key(self, path: str) -> bool:
        """While a node that never saw a key has not seen its store either, one may look what is wrong with it."""
        if self._always:
            return True
        try:
            return await self._access.keyed()
        except Unavailable:
            if path in WITHOUT_STORE:
                return False
            raise

    def address(self, request: web.Request) -> str:
        """Where the request comes from: the last hop that no trusted proxy speaks for."""
        address = request.remote or ""
        if not self._proxies or not within(address, self._proxies):
            return address
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        for hop in reversed(hops):
            if not (told := _told_address(hop)):
                break
            address = told
            if not within(address, self._proxies):
                break
        return address


@lru_cache(maxsize=1024)
def _nobody(address: str) -> Caller:
    """Whoever has no key is told apart by the address."""
    return Caller(id=address, address=address)


def _secret(headers: list[str]) -> str:
    """What stands behind `Bearer`, or the password of `Basic`: some clients can only be given a URL. Empty when neither
    is said, or something is said twice."""
    scheme, _, rest = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return b64decode(rest, validate=True).decode().partition(":")[2]
    return ""


def _told_address(hop: str) -> str:
    """`1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80` as an address; empty for others."""
    text = hop.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)
