"""Everything that is kept in Redis. `Store` is the one object; no other module knows a key or a script."""

from node.store.store import Store, insist

__all__ = ["Store", "insist"]
