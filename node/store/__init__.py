"""Everything that is kept in Redis. `Store` is the one object; no other module knows a key or a script."""

from node.store.access import Access, Key
from node.store.limit import Limit, Standing
from node.store.records import Bounds
from node.store.store import Store, insist
from node.store.waiter import Tails

__all__ = ["Access", "Bounds", "Key", "Limit", "Standing", "Store", "Tails", "insist"]
