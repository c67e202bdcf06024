"""The node's own server: what it may use, and what it leaves behind."""

import os
from pathlib import Path

import pytest

from node.config import Embedded as Settings
from node.findings import Level
from node.store import Store
from node.store.embedded import LOG_MAX_BYTES, Embedded, memory_bytes
from node.store.server import findings


@pytest.mark.parametrize("limit", [0, 50_000_000])
async def test_its_memory_is_limited_to_half_of_what_there_is_or_as_configured(tmp_path: Path, limit: int) -> None:
    settings = Settings(max_memory_bytes=limit)
    async with Embedded(tmp_path, settings) as server, Store(server.url, node_id="n1") as store:
        facts = await store.facts()
    assert facts.info["maxmemory"] == (limit or memory_bytes() // 2)
    assert 0 < memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


async def test_it_is_as_safe_as_the_doctor_wants_it(tmp_path: Path) -> None:
    async with Embedded(tmp_path, Settings()) as server, Store(server.url, node_id="n1") as store:
        facts = await store.facts()
    assert [str(each) for each in findings(facts) if each.level is not Level.OK] == []
    assert int(facts.settings["auto-aof-rewrite-percentage"]) > 0


async def test_what_a_rewrite_left_that_was_cut_short_is_removed_and_a_long_log_put_aside(tmp_path: Path) -> None:
    directory = tmp_path / "valkey"
    directory.mkdir()
    (directory / "temp-rewriteaof-bg-1.aof").write_bytes(b"x")
    (directory / "valkey.log").write_bytes(b"x" * (LOG_MAX_BYTES + 1))
    async with Embedded(tmp_path, Settings()):
        assert not (directory / "temp-rewriteaof-bg-1.aof").exists()
        assert (directory / "valkey.log").stat().st_size < LOG_MAX_BYTES
        assert (directory / "valkey.log.1").stat().st_size > LOG_MAX_BYTES
