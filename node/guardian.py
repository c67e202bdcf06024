"""Admission: may this caller do this, have this job run here? Pure rules; those of a job in the order of Infernet's
guardian (v1.4)."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from node.config import ContainerSpec, Network
from node.errors import SHOWN_CHARS, Forbidden, Rejected
from node.jobs import Caller, JobRequest, Role


class Guardian:
    def __init__(self, specs: Mapping[str, ContainerSpec], *, max_chain: int) -> None:
        self._specs = specs
        self._max_chain = max_chain

    def admit(self, request: JobRequest, caller: Caller) -> None:
        """Raises `Rejected` with the first rule that is broken. The messages are Infernet's."""
        chain = request.containers
        if not chain:
            raise Rejected("No containers specified")
        if len(chain) > self._max_chain:
            raise Rejected("Too many containers", limit=self._max_chain)
        for container in chain:
            if container not in self._specs:
                raise Rejected("Container not supported", container=container[:SHOWN_CHARS])
        if not self._specs[chain[0]].external:
            raise Rejected("First container must be external", first_container=chain[0])
        if request.requires_proof and not self._specs[chain[-1]].generates_proofs:
            raise Rejected("Container does not generate proof", container=chain[-1])
        for container in chain:
            networks = self._specs[container].allowed_ips
            if networks and not within(caller.address, networks):
                raise Rejected("Container not allowed for address", address=caller.address, container=container)


def demand(caller: Caller, needed: Role) -> None:
    """Raises `Forbidden` when the caller's key has a smaller role."""
    if caller.role is not None and not caller.role.covers(needed):
        raise Forbidden("The key may not do this", role=caller.role.value, needed=needed.value)


def within(address: str, networks: Iterable[Network]) -> bool:
    """An IPv4 address counts as such also where a socket shows it as an IPv6 one. What is no address is nowhere."""
    try:
        host = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(host, "ipv4_mapped", None)
    return any((mapped or host) in network for network in networks)
