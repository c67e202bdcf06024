"""Names of the keys in Redis. All share the hash tag `{0}`, so that one cluster slot holds a job with its lanes.

Scripts that meet job ids or callers only while they run (in a lane's entries, say) build these names from the same
prefix (`scripts/prelude.lua`); that is the reason for the one tag.
"""

PREFIX = "stoker:{0}:"

LIVE = PREFIX + "live"  # sorted set: ids of jobs that are not terminal, by when the janitor looks at them next
DEAD = PREFIX + "dead"  # sorted set: ids of failed jobs that somebody should look at, by the time of their end
NODES = PREFIX + "nodes"  # sorted set: nodes, by when they were last heard of
SERVED = PREFIX + "served"  # sorted set: containers, by when a node that has them was last heard of
MARK = PREFIX + "mark"  # string: made with the first key; another one, or none, means that the store was emptied
ACCESS = PREFIX + "access"  # hash: all API keys; its fields are listed in `access.py`
RATE = PREFIX + "rate"  # prefix of the windows of the rate limit; the package `limits` names and makes them
BACK = PREFIX + "back"  # string: when nodes were heard of again after a time in which none was
STOPPED = PREFIX + "stopped"  # channel: ids of jobs that were ended while a step of theirs ran


def job(job_id: str) -> str:
    """Hash: the record of a job; its fields are listed in `scripts/submit.lua`."""
    return f"{PREFIX}job:{job_id}"


def lane(container: str) -> str:
    """Stream: steps that wait for, or run in, a container; consumer group `nodes`. Entry: `j` job id, `s` step."""
    return f"{PREFIX}lane:{container}"


def bulk(container: str) -> str:
    """Stream like a lane: steps of callers that have more than their share of jobs; taken when the lane leaves room."""
    return f"{PREFIX}bulk:{container}"


def pending(caller: str) -> str:
    """Sorted set: ids of a caller's jobs that are not terminal, by creation time."""
    return f"{PREFIX}pending:{caller}"


def finished(caller: str) -> str:
    """Sorted set: ids of a caller's terminal jobs, by creation time."""
    return f"{PREFIX}finished:{caller}"


def ended(state: str) -> str:
    """Sorted set: ids of all jobs that ended in a state, by the time of their end."""
    return f"{PREFIX}ended:{state}"


ENDED = [ended(state) for state in ("succeeded", "failed", "cancelled")]


def once(digest: str) -> str:
    """String: for an idempotency key, what the request was, and which job came of each of its parts; expires."""
    return f"{PREFIX}once:{digest}"


def owner(node_id: str) -> str:
    """String: which data directory's node has a name; expires when it is silent."""
    return f"{PREFIX}owner:{node_id}"


def streams(node_id: str) -> str:
    """Set: ids of the streams that a node runs; they are in no lane, and end when their node does."""
    return f"{PREFIX}streams:{node_id}"
