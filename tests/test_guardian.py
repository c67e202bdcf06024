from collections.abc import Sequence
from typing import Any

import pytest

from node.config import ContainerSpec
from node.errors import Rejected
from node.guardian import Guardian
from node.jobs import Caller, JobRequest

MAX_CHAIN = 4


def spec(container: str, **more: Any) -> ContainerSpec:
    return ContainerSpec.model_validate({"id": container, "image": "x", **more})


SPECS = [
    spec("open"),
    spec("inner", external=False),
    spec("proof", generates_proofs=True),
    spec("guarded", allowed_ips=["10.0.0.1"]),
    spec("all-rules", external=False, allowed_ips=["10.0.0.1"]),
]
GUARDIAN = Guardian({each.id: each for each in SPECS}, max_chain=MAX_CHAIN)


def caller(address: str) -> Caller:
    return Caller(id=address, address=address)


def admit(
    *chain: str, proof: bool = False, address: str = "192.0.2.1", guardian: Guardian = GUARDIAN
) -> tuple[str, dict[str, Any]] | None:
    """None when admitted, else the error and its params."""
    try:
        guardian.admit(JobRequest(containers=chain, data=b"{}", requires_proof=proof), caller(address))
    except Rejected as error:
        return error.message, error.params
    return None


@pytest.mark.parametrize(
    ("chain", "proof"),
    [
        (["open"], False),
        (["open", "inner"], False),
        (["open", "open", "inner", "inner"], False),
        (["proof"], True),
        (["open", "proof"], True),
        (["proof", "open"], False),
    ],
)
def test_a_chain_that_keeps_all_rules_is_admitted(chain: Sequence[str], proof: bool) -> None:
    assert admit(*chain, proof=proof) is None


RULES: list[tuple[Sequence[str], bool, str, dict[str, Any]]] = [
    ([], False, "No containers specified", {}),
    ([], True, "No containers specified", {}),
    (["open"] * 5, False, "Too many containers", {"limit": MAX_CHAIN}),
    (["nowhere"] * 5, False, "Too many containers", {"limit": MAX_CHAIN}),
    (["nowhere"], False, "Container not supported", {"container": "nowhere"}),
    (["open", "nowhere"], False, "Container not supported", {"container": "nowhere"}),
    (["inner", "one", "two"], True, "Container not supported", {"container": "one"}),
    ([""], False, "Container not supported", {"container": ""}),
    (["Open"], False, "Container not supported", {"container": "Open"}),
    (["x" * 1000], False, "Container not supported", {"container": "x" * 128}),
    (["inner"], False, "First container must be external", {"first_container": "inner"}),
    (["all-rules", "open"], True, "First container must be external", {"first_container": "all-rules"}),
    (["open"], True, "Container does not generate proof", {"container": "open"}),
    (["proof", "open"], True, "Container does not generate proof", {"container": "open"}),
    (["guarded"], True, "Container does not generate proof", {"container": "guarded"}),
    (
        ["guarded"],
        False,
        "Container not allowed for address",
        {"address": "192.0.2.1", "container": "guarded"},
    ),
    (
        ["open", "all-rules", "guarded"],
        False,
        "Container not allowed for address",
        {"address": "192.0.2.1", "container": "all-rules"},
    ),
]


@pytest.mark.parametrize(("chain", "proof", "message", "params"), RULES)
def test_the_first_broken_rule_in_infernets_order_is_told(
    chain: Sequence[str], proof: bool, message: str, params: dict[str, Any]
) -> None:
    assert admit(*chain, proof=proof) == (message, params)


ADDRESSES: list[tuple[list[str], str, bool]] = [
    ([], "203.0.113.9", True),
    ([], "", True),
    (["10.0.0.1"], "10.0.0.1", True),
    (["10.0.0.1"], "10.0.0.2", False),
    (["10.0.0.0/8"], "10.255.0.1", True),
    (["10.0.0.0/8"], "11.0.0.1", False),
    (["10.1.2.3/8"], "10.9.9.9", True),  # host bits do not matter
    (["10.0.0.1", "192.168.0.0/16"], "192.168.7.7", True),
    (["0.0.0.0/0"], "203.0.113.9", True),
    (["0.0.0.0/0"], "2001:db8::1", False),
    (["10.0.0.0/8"], "::ffff:10.0.0.1", True),  # how a socket for both families shows an IPv4 peer
    (["10.0.0.0/8"], "::ffff:11.0.0.1", False),
    (["10.0.0.1"], "::10.0.0.1", False),
    (["::1"], "::1", True),
    (["::1"], "0:0:0:0:0:0:0:1", True),
    (["::1"], "127.0.0.1", False),
    (["2001:db8::/32"], "2001:db8:ffff::1", True),
    (["2001:db8::/32"], "2001:db9::1", False),
    (["fe80::/10"], "fe80::1%eth0", True),
    (["::/0"], "2001:db8::1", True),
    (["::/0"], "192.0.2.1", False),
    (["::/0", "0.0.0.0/0"], "", False),
    (["::/0", "0.0.0.0/0"], "unix", False),
    (["10.0.0.1"], "10.0.0.1 ", False),
    (["10.0.0.1"], "10.0.0.01", False),
]


@pytest.mark.parametrize(("allowed", "address", "admitted"), ADDRESSES)
def test_only_addresses_in_the_allowed_networks_pass(allowed: list[str], address: str, admitted: bool) -> None:
    guardian = Guardian({"x": spec("x", allowed_ips=allowed)}, max_chain=1)
    refusal = None if admitted else ("Container not allowed for address", {"address": address, "container": "x"})
    assert admit("x", address=address, guardian=guardian) == refusal
