"""Services as local processes: for development, and for machines without Docker. Nothing confines them.

backend      brings services up: `ProcessBackend`
environment  a Python environment for a folder's `requirements.txt`
orphans      finding what a node that died has left running
child        one process in a session of its own: its output, its end
"""

from node.backends.process.backend import ProcessBackend

__all__ = ["ProcessBackend"]
