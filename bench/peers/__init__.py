"""The same work done with other job queues. These modules run in environments of their own (`make bench-peers`), one
for each queue, and know of this package only what needs no other dependency.

A job calls the container as the node would, with 64 at once in each worker process, and its result is the container's
output. Each queue is tuned as its documents advise: uvloop, hiredis, a fast serializer, enough connections.
"""
