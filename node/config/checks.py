"""Rules about several values together, and what is worth a warning. Each value by itself is checked by its model."""

import json
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

from node.config.faults import Fault, Loc, path
from node.config.models import BackendName, Chain, Config, ContainerSpec, Hardening, Runner, Section, Server
from node.config.schema import sections, unused
from node.config.syntax import Tree


def check(config: Config) -> Iterator[Fault]:
    """What is wrong although each value by itself is right."""
    if config.chain.enabled:
        yield Fault(loc=("chain", "enabled"), found="true", expected="false: on-chain work is not supported")
    if "/" in config.node_id:
        expected = "a name without a slash: NODE/r1 is that of a process of NODE"
        yield Fault(loc=("node_id",), found=json.dumps(config.node_id), expected=expected)
    yield from _too_soon_gone(config.runner)
    yield from _same_ids(config)
    yield from _same_ports(config)
    for index, spec in enumerate(config.containers):
        yield from _nowhere(("containers", index), spec, config.manage_containers)
        yield from _not_allowed(("containers", index, "hardening"), spec.hardening, config.docker_allow)


def warnings(tree: Tree) -> Iterator[str]:
    """What a file says in vain: unknown keys, and known ones that have no effect."""
    for model, section, loc in sections(tree):
        for key, value in section.items():
            if reason := _in_vain(model, key, value):
                yield f"{path((*loc, key))}: {reason}"
        if model is ContainerSpec:
            yield from _overruled(section, loc)


def open_door(server: Server) -> str:
    """A warning that only the store can answer; a node that starts asks it. Empty when there is none."""
    if not server.reachable or server.require_keys:
        return ""
    if server.insecure:
        return "server.insecure: while there is no API key, whoever can reach the node may submit jobs"
    return (
        f"server.host: others can reach {server.host}, so the node starts only when there is an API key "
        "(stoker keys create), or with server.insecure"
    )


def _in_vain(model: type[Section], key: str, value: Any) -> str:
    field = model.model_fields.get(key)
    if field is not None:
        return f"not used: {field.description}".rstrip(".") if unused(field) and value else ""
    if model is Chain:
        return "" if value is None else "not used: on-chain work is not supported"
    nearest = _meant(model, key)
    return "unknown key, left out" + (f'; did you mean "{nearest}"?' if nearest else "")


def _meant(model: type[Section], key: str) -> str:
    """The key that somebody may have had in mind, perhaps with Docker's words for it; nothing if there is none."""
    if model is ContainerSpec:
        key = {"network_mode": "host_network", "network": "host_network", "mem_limit": "memory_bytes"}.get(key, key)
        if key in Hardening.model_fields:
            return f"hardening.{key}"
    return next(iter(get_close_matches(key, model.model_fields, n=1, cutoff=0.5)), "")


def _overruled(section: Tree, loc: Loc) -> Iterator[str]:
    winner = next((key for key in ("url", "build") if section.get(key)), "")
    for key in ("image", "build"):
        if winner and key != winner and section.get(key):
            yield f"{path((*loc, key))}: not used: {winner} is given and wins"


def _too_soon_gone(runner: Runner) -> Iterator[Fault]:
    """A node is heard of once in each `reclaim_s`: it must not count as gone after one that came late."""
    if runner.gone_s <= 2 * runner.reclaim_s:
        expected = f"more than twice runner.reclaim_s ({runner.reclaim_s:g} s), or live nodes count as gone: raise it"
        yield Fault(loc=("runner", "gone_s"), found=f"{runner.gone_s:g} s", expected=f"{expected}, or lower that")


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
    elsewhere = "manage_containers is false" if not managed else "its backend is remote"
    if managed and spec.backend is not BackendName.REMOTE:
        if not (spec.image or spec.build):
            yield Fault(loc=loc, found="no image, build or url", expected="one of them")
    elif not spec.port:
        yield Fault(loc=loc, found="no url or port", expected=f"one of them, since {elsewhere}")


def _not_allowed(loc: Loc, hardening: Hardening, allowed: Collection[str]) -> Iterator[Fault]:
    """What would hand over the host, and is not allowed on this node."""
    for name in ("privileged", "host_network"):
        if getattr(hardening, name) and name not in allowed:
            expected = f'false, unless docker_allow lists "{name}": it gives the container this host'
            yield Fault(loc=(*loc, name), found="true", expected=expected)
