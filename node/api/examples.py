"""What the API's document shows: answers as they look, and refusals as they are raised. No other code uses them."""

from node import __version__
from node.api import shapes
from node.errors import (
    Conflict,
    Forbidden,
    Mismatch,
    NotFound,
    RateLimited,
    Refusal,
    Rejected,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)

ID = "44699622-5b8a-4cbf-815a-271687f235c8"

ACCEPTED: shapes.Accepted = {"id": ID}
CHAIN: shapes.JobRequest = {"containers": ["language", "sentiment"], "data": {"text": "What a lovely morning."}}
STREAM: shapes.StreamRequest = {"containers": ["language"], "data": {"text": "What a lovely morning."}}
STATUS_REPORT: shapes.StatusReport = {"id": "outside-1", "status": "success", "containers": ["language"]}
RESULT: shapes.JobResult = {
    "id": ID,
    "intermediate_results": [{"container": "language", "output": {"language": "en"}}],
    "result": {"container": "sentiment", "output": {"sentiment": 0.5859}},
    "status": "success",
}
CANCELLED: shapes.JobResult = {
    "id": ID,
    "intermediate_results": [],
    "result": {"container": "", "error": "cancelled: by request"},
    "status": "failed",
}
DEAD: shapes.JobResult = {
    "id": ID,
    "result": {"container": "language", "error": "its worker died 3 times in this step"},
    "status": "failed",
}

CONTAINER: shapes.Container = {
    "description": "Tells the language",
    "external": True,
    "id": "language",
    "image": "language:1",
}
INFO: shapes.Info = {
    "chain": {"address": "", "enabled": False},
    "containers": [CONTAINER],
    "pending": {"offchain": 2, "onchain": 0},
    "version": __version__,
}
RESOURCES = {"language": {"service_id": "language", "version": "1.0.0"}}
HEALTHY: shapes.Health = {"status": "healthy"}
UNHEALTHY: shapes.Health = {"reason": "The job store does not answer", "status": "unhealthy"}
LIVE: shapes.Live = {"status": "live"}
READY: shapes.Readiness = {"reasons": [], "status": "ready", "warnings": []}
UNREADY: shapes.Readiness = {
    "reasons": ["redis: connection refused"],
    "status": "unready",
    "warnings": ["container ocr: its image is built"],
}

NO_KEY = Unauthorized("A valid API key is needed, as `Authorization: Bearer KEY`")
SMALL_KEY = Forbidden("The key may not do this", role="read", needed="submit")
OTHER_HOST = Forbidden("Host not allowed", host="example.com", setting="server.allowed_hosts")
OTHER_SITE = Forbidden("Request from another site", origin="https://example.com", setting="server.allowed_hosts")
OTHER_NETWORK = Forbidden("Unauthorized")
TOO_MANY_REQUESTS = RateLimited("Too many requests", limit=60, period_s=60)
NO_STORE = Unavailable("The job store does not answer", reason="connection refused")

TOO_SLOW = TooSlow("Request too slow", limit_s=15, setting="server.request_timeout_s")
UNREADABLE = Rejected("Could not parse message", reason="data: expected an object")
NOT_A_LIST = Rejected("Expected a list", reason="not a list")
NO_SUCH_STATUS = Rejected("Status is invalid", allowed=["failed", "running", "success"])
TOO_LARGE = TooLarge("Body too large", limit_bytes=16_777_216)
BATCH_TOO_LARGE = TooLarge("Batch too large", limit=10_000)
BODIES_TOO_LARGE = Unavailable("Too many large bodies", limit_bytes=268_435_456, setting="server.max_bodies_bytes")
ANSWER_TOO_LARGE = TooLarge(
    "Answer too large: ask for fewer ids at once, or without intermediate results",
    limit_bytes=67_108_864,
    setting="server.max_answer_bytes",
)
NOT_JSON = UnsupportedMedia("Content-Type must be application/json, in UTF-8", content_type="text/plain")
OF_BODIES: tuple[Refusal, ...] = (UNREADABLE, TOO_LARGE, NOT_JSON, TOO_SLOW, BODIES_TOO_LARGE)

NO_CONTAINER = Rejected("Container not supported", container="langauge")
NO_PAGE = Rejected("limit is invalid", expected="1 to 10000")
NO_CHAIN = Rejected("Chain not enabled")
TOO_MANY_JOBS = RateLimited("Too many jobs at once", limit=100_000)
STOPPING = Unavailable("The node is shutting down")
OF_SUBMITS: tuple[Refusal, ...] = (*OF_BODIES, NO_CONTAINER, NO_CHAIN, STOPPING)
QUEUE_FULL = Unavailable("Queue full", container="language", limit=100_000)
USED_BEFORE = Mismatch("Idempotency-Key was used for another request")
ONE_CONTAINER = Rejected("Streaming supports one container", containers=["language", "sentiment"])
NOT_READY = Unavailable("Container not ready", container="language")
OWN_STREAMS = RateLimited("Too many streams at once", limit=32, setting="server.max_streams_per_caller")
TOO_MANY_STREAMS = Unavailable("Too many streams", limit=1000, setting="server.max_streams")

UNKNOWN = NotFound("Job not found", id=ID)
UNKNOWN_ALL = NotFound("Job not found", id=[ID])
ENDED = Conflict("Job has ended", id=ID, state="succeeded")
NOT_FAILED = Conflict("Job has not failed", id=ID, state="running")
