"""Rules about several values together, and what is worth a warning. Each value by itself is checked by its model."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from ipaddress import ip_address

from node.config.faults import Fault, Loc, path, quoted
from node.config.models import BackendName, Chain, Config, ContainerSpec
from node.config.schema import sections, unused
from node.config.syntax import Tree


def check(config: Config) -> Iterator[Fault]:
    """What is wrong although each value by itself is right."""
    if config.chain.enabled:
        yield Fault(loc=("chain", "enabled"), found="true", expected="false: on-chain work is not supported")
    if not (_loopback(config.server.host) or config.server.insecure):
        loc = ("server", "host")
        expected = "localhost or a loopback address, unless server.insecure is true: whoever connects may submit jobs"
        yield Fault(loc=loc, found=quoted(config.server.host, loc), expected=expected)
    yield from _same_ids(config)
    yield from _same_ports(config)
    for index, spec in enumerate(config.containers):
        yield from _nowhere(("containers", index), spec, config.manage_containers)


def warnings(tree: Tree) -> Iterator[str]:
    """What a file says in vain: unknown keys, and known ones that have no effect."""
    for model, section, loc in sections(tree):
        for key, value in section.items():
            field = model.model_fields.get(key)
            if model is Chain and field is None and value is not None:
                yield f"{path((*loc, key))}: not used: on-chain work is not supported"
            elif field is None:
                yield f"{path((*loc, key))}: unknown key, left out{_nearest(key, list(model.model_fields))}"
            elif unused(field) and value:
                yield f"{path((*loc, key))}: not used: {field.description}"
        if model is ContainerSpec:
            yield from _overruled(section, loc)


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _same_ids(config: Config) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for index, spec in enumerate(config.containers):
        if spec.id in first:
            expected = f"another id: containers[{first[spec.id]}] has this one"
            yield Fault(loc=("containers", index, "id"), found=json.dumps(spec.id), expected=expected)
        first.setdefault(spec.id, index)


def _same_ports(config: Config) -> Iterator[Fault]:
    """A port is taken once on this machine. 0 is a free one, and what is reached by a `url` takes none."""
    holder = {config.server.port: "the server"}
    for index, spec in enumerate(config.containers):
        if spec.url or not spec.port:
            continue
        if spec.port in holder:
            expected = f"another port, or 0 for a free one: {holder[spec.port]} has this one"
            yield Fault(loc=("containers", index, "port"), found=str(spec.port), expected=expected)
        holder.setdefault(spec.port, f"containers[{index}]")


def _nowhere(loc: Loc, spec: ContainerSpec, managed: bool) -> Iterator[Fault]:
    """A container that is neither somewhere nor can be started."""
    if spec.url:
        return
    if spec.backend is BackendName.REMOTE:
        yield Fault(loc=(*loc, "backend"), found='"remote"', expected="a url beside it")
    elif managed and not (spec.image or spec.build):
        yield Fault(loc=loc, found="no image, build or url", expected="one of them")
    elif not managed and not spec.port:
        yield Fault(loc=loc, found="no url or port", expected="one of them, since manage_containers is false")


def _overruled(section: Tree, loc: Loc) -> Iterator[str]:
    winner = next((key for key in ("url", "build") if section.get(key)), "")
    for key in ("image", "build"):
        if winner and key != winner and section.get(key):
            yield f"{path((*loc, key))}: not used: {winner} is given and wins"


def _nearest(key: str, known: list[str]) -> str:
    nearest = get_close_matches(key, known, n=1, cutoff=0.5)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""
