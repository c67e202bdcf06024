"""The types of single values in a configuration file: what is accepted, and what that is in words."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

MIB = 1024 * 1024

_HOSTS = r"(?:[^@/]*@)?[^@/:,]+(?::\d+)?(?:,[^@/:,]+(?::\d+)?)*"
_MANY_HOSTS = re.compile(rf"rediss?\+(?:sentinel://{_HOSTS}/[^/]+|cluster://{_HOSTS}/?)")


class Words(str):
    """What a value of a type is, for a reader: follows "expected" in a fault, and is a column of the reference page."""

    __slots__ = ()


class NotUsed:
    """Marks a value that is read so that an Infernet file loads, and then has no effect. Giving it is a warning."""


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a truth value is no number")
    return value


def _network(value: Any) -> Any:
    """An address alone is a network of one; host bits do not matter."""
    if isinstance(value, str):
        return ip_network(value, strict=False)
    if isinstance(value, Network):
        return value
    raise ValueError("not a text")


def _service_url(value: str) -> str:
    _check_url(value, "http", "https")
    return value


def _redis_url(value: str) -> str:
    if value.startswith("unix:///"):
        return value
    if "+" in value.partition("://")[0]:
        if not _MANY_HOSTS.fullmatch(value):
            raise ValueError("not such a URL")
        return value
    _check_url(value, "redis", "rediss")
    return value


def _check_url(value: str, *schemes: str) -> None:
    parts = urlsplit(value)
    if value and not (parts.scheme in schemes and parts.hostname and parts.port != 0):
        raise ValueError("not such a URL")


T = TypeVar("T")
Unused = Annotated[T, NotUsed()]

Network = IPv4Network | IPv6Network
Networks = tuple[Annotated[Network, BeforeValidator(_network), Words("an IP address or network")], ...]
Number = BeforeValidator(_number)
Port = Annotated[int, Number, Field(ge=0, le=65535), Words("a port, 0 to 65535")]
Seconds = Annotated[float, Number, Field(gt=0, allow_inf_nan=False), Words("seconds, more than 0")]
Grace = Annotated[float, Number, Field(ge=0, allow_inf_nan=False), Words("seconds, 0 or more")]
Isolation = Literal["auto", "require", "manual"]
Bytes = Annotated[int, Number, Field(gt=0), Words("a number of bytes, 1 or more")]
Count = Annotated[int, Number, Field(ge=1), Words("a whole number, 1 or more")]
Natural = Annotated[int, Number, Field(ge=0), Words("a whole number, 0 or more")]
Text = Annotated[str, Field(min_length=1), Words("text that is not empty")]
Texts = dict[str, Annotated[str, Field(coerce_numbers_to_str=True), Words("text or a number")]]
SecretText = Annotated[SecretStr, Field(min_length=1), Words("text that is not empty")]
ServiceUrl = Annotated[str, AfterValidator(_service_url), Words("an http:// or https:// URL")]
RedisUrl = Annotated[
    str,
    AfterValidator(_redis_url),
    Words("a redis://, rediss://, unix:///, redis+sentinel://HOST:PORT,.../NAME or redis+cluster://HOST:PORT,... URL"),
]
ContainerId = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    Words("1 to 128 letters, digits, dots, underscores or hyphens, the first a letter or digit"),
]
