"""HTTP/1.1 from the asking side: one server, connections kept to it, what it answers. What is asked is not known here.

    peer        one server by its URL: connects, keeps connections that are idle, hands a request to one of them
    connection  one connection: sends a request, reads the answer as it comes
    answer      head and body of one answer
    coding      bodies that come packed although nobody asked for that

`asyncio` carries the bytes and `httptools` parses them; the hot path is a write, a parse and one wake-up.
"""

from node.wire.answer import Answer, Broken
from node.wire.peer import Peer, Unreachable

__all__ = ["Answer", "Broken", "Peer", "Unreachable"]
