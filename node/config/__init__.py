"""The configuration: one frozen object made from one JSON file. An Infernet v1.4 `config.json` is a valid one.

    models   what a file may say                    schema   what the models say about themselves, in words
    file     from a path to a `Config`              checks   rules about several values together
    secrets  what must not be shown

What the values do is said by the modules that use them.
"""

from node.config.file import Loaded, find, load
from node.config.models import (
    BackendName,
    Build,
    Chain,
    Config,
    ContainerSpec,
    Embedded,
    Hardening,
    Log,
    RateLimit,
    Redis,
    Registry,
    Retention,
    Runner,
    Section,
    Server,
)
from node.config.values import MIB, Isolation, Network

__all__ = [
    "MIB",
    "BackendName",
    "Build",
    "Chain",
    "Config",
    "ContainerSpec",
    "Embedded",
    "Hardening",
    "Isolation",
    "Loaded",
    "Log",
    "Network",
    "RateLimit",
    "Redis",
    "Registry",
    "Retention",
    "Runner",
    "Section",
    "Server",
    "find",
    "load",
]
