"""Every error that Stoker raises on purpose.

    StokerError
    ├── ConfigError                  the configuration is wrong; one line per fault; exit code 2
    ├── BackendError                 a container cannot be brought up; `message` says why and what to do
    └── Refusal                      a request is answered with an error; `code` chooses the HTTP status
        ├── Rejected                 the request itself is wrong
        ├── TooLarge                 a body or a batch is over its limit
        ├── TooSlow                  the request did not come whole in time
        ├── UriTooLong               the request's first line is over its limit
        ├── HeadersTooLarge          a header, or their number, is over its limit
        ├── UnsupportedMedia         the body is not declared as JSON
        ├── Unauthorized             no valid API key came with it
        ├── Forbidden                the caller may not do this
        ├── NotFound                 no such thing, or not the caller's
        ├── Conflict                 not possible in the state that the thing is in
        ├── Mismatch                 an idempotency key came again with another request
        ├── RateLimited              too many requests, or too many jobs at once
        └── Unavailable              the node cannot do it now: draining, or the store does not answer

A job's failure is not here: it is a value (`jobs.ContainerError`).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

SHOWN_CHARS = 128  # of a name, a path or a header that a client sent, in `params`; longer than any id


def readable(words: str) -> str:
    """Words of somebody else without what is no text, which nothing that writes UTF-8 can write: `?` instead.

    Bytes that were no UTF-8 come as lone surrogates, such as those of a header.
    """
    return words.encode("utf-8", "replace").decode()


class StokerError(Exception):
    """Root of the tree; `str()` of any of them is a sentence for a reader."""


class ConfigError(StokerError):
    """`faults` holds one line per fault: file, JSON path, what was found, what is expected."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class BackendError(StokerError):
    """A container cannot be brought up. `retry` is False when only a change by somebody can help."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class Refusal(StokerError):
    """A request answered with `{"error": message, "params": params}`.

    `params` are named facts for a program; `retry_after_s` becomes the `Retry-After` header.
    """

    code: ClassVar[str] = "rejected"

    def __init__(self, message: str, *, retry_after_s: float | None = None, **params: Any) -> None:
        super().__init__(message)
        self.message = message
        self.params = params
        self.retry_after_s = retry_after_s


class Rejected(Refusal):
    code = "rejected"


class TooLarge(Refusal):
    code = "too_large"


class TooSlow(Refusal):
    code = "too_slow"


class UriTooLong(Refusal):
    code = "uri_too_long"


class HeadersTooLarge(Refusal):
    code = "headers_too_large"


class UnsupportedMedia(Refusal):
    code = "unsupported_media"


class Unauthorized(Refusal):
    code = "unauthorized"


class Forbidden(Refusal):
    code = "forbidden"


class NotFound(Refusal):
    code = "not_found"


class Conflict(Refusal):
    code = "conflict"


class Mismatch(Refusal):
    code = "mismatch"


class RateLimited(Refusal):
    code = "rate_limited"


class Unavailable(Refusal):
    code = "unavailable"
