"""Containers of a Docker engine on this machine. The only package that knows the Docker SDK.

backend     brings containers up, adopts and replaces them: `DockerBackend`
plan        from a `ContainerSpec` to what the engine is told; every limit and permission is chosen there
images      pulled, built, or found on this machine
networks    the node's own bridges
firewall    the rules that cut containers off from this host
watch       when and why containers stop
engine      the SDK's calls in threads, each with a deadline
"""

from node.backends.docker.backend import DockerBackend

__all__ = ["DockerBackend"]
