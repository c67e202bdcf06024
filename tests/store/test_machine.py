"""Hypothesis plays clients, nodes that die, and damage, against a real server; the store must keep its promises.

After every step of a play all that the server holds is compared with a model; in the end healthy nodes take over, and
every job must reach its end. `STOKER_FULL=1` plays thousands of times, at random; else it is always the same few.
"""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from node.errors import Mismatch, RateLimited, Refusal, Unavailable
from node.jobs import Claim, ContainerError, ContainerResult, JobRequest, State
from tests.store.model import ENDS, KEY, Expected, Kept, agree
from tests.store.play import BOUNDS, CONTAINERS, NODES, Play
from tests.store.support import ME, OTHER
from tests.support import RedisServer

FULL = bool(os.environ.get("STOKER_FULL"))
PLAYS, STEPS = (1500, 80) if FULL else (10, 80)

CALLERS = {caller.id: caller for caller in (ME, OTHER)}
DEATHS = 2
HASTE_S = 1e-9
LIMITS = {"queue_timeout_s": 3600, "timeout_s": 3600, "gone_s": 3600}
DAMAGE = ("lane", "group", "lease", "entry", "twice", "litter", "scripts")

chains = st.lists(st.sampled_from(CONTAINERS), min_size=1, max_size=3).map(tuple)
callers = st.sampled_from(sorted(CALLERS))
nodes = st.sampled_from(NODES)
containers = st.sampled_from(CONTAINERS)
picks = st.integers(0, 40)  # one of those that there are
datas = st.sampled_from([b"{}", b'{"x": 1}'])


class Machine(Play):
    @initialize(first=st.lists(chains, min_size=6, max_size=6))
    def open_house(self, first: list[tuple[str, ...]]) -> None:
        """Every play begins with work that waits and work that runs."""
        self.begin()
        for i, caller in enumerate(CALLERS):
            for chain in first[i::2]:
                self.submit(caller, NODES[i], [(chain, b"{}")], "", "")
        for node in NODES:
            for container in CONTAINERS:
                self.claim(node, container, 1)

    # Clients

    @rule(
        caller=callers,
        node=nodes,
        batch=st.lists(st.tuples(chains, datas), min_size=1, max_size=3),
        name=st.sampled_from(["", "", "k1", "k2"]),
        hasty=st.sampled_from(["", "", "", "queue_timeout_s", "timeout_s"]),
    )
    def submit(self, caller: str, node: str, batch: list[Any], name: str, hasty: str) -> None:
        haste = {hasty: HASTE_S} if hasty else {}
        jobs = [(self.new_id(), JobRequest(containers=chain, data=data, **haste)) for chain, data in batch]
        asked = (batch, hasty)
        known, ids = self.named.setdefault((caller, name), (asked, {})) if name else (asked, {})
        sent = self.stores[node].submit(CALLERS[caller], jobs, once=name)
        if known != asked:
            with pytest.raises(Mismatch):
                self.do(sent)
            return
        answers = self.do(sent)
        if name and all(isinstance(answer, Refusal) for answer in answers):
            del self.named[caller, name]
        for i, ((job_id, request), answer) in enumerate(zip(jobs, answers, strict=True)):
            if i in ids:
                assert answer == ids[i], "a named request was accepted twice"
            elif isinstance(answer, Refusal):
                self._refused(request.containers[0], caller, answer)
            else:
                assert answer == job_id
                ids[i] = job_id
                job = Expected(id=job_id, caller=caller, chain=request.containers, data=request.data, hasty=hasty)
                job.bulk = self._live(caller) >= BOUNDS.share
                self.model.accept(job)

    @rule(pick=picks, node=nodes)
    def submit_again(self, pick: int, node: str) -> None:
        """A client that did not hear the answer sends its named request a second time."""
        if self.named:
            (caller, name), ((batch, hasty), _) = list(self.named.items())[pick % len(self.named)]
            self.submit(caller, node, batch, name, hasty)

    def _refused(self, container: str, caller: str, answer: Refusal) -> None:
        if isinstance(answer, RateLimited):
            assert self._live(caller) >= BOUNDS.pending
        else:
            assert isinstance(answer, Unavailable)
            assert len(Kept(self.raw).entries(container)) >= BOUNDS.lane

    def _live(self, caller: str) -> int:
        return sum(job.caller == caller for job in self.model.live())

    @rule(node=nodes, pick=picks, state=st.sampled_from(ENDS))
    def end(self, node: str, pick: int, state: State) -> None:
        """A cancel, a reported state, or the end of a stream."""
        job = self.job(pick)
        if job is None:
            return
        result = self.outcome(job.container, good=state is State.SUCCEEDED)
        self._ends(job, state, result, self.do(self.stores[node].end(job.id, state, result)))

    def _ends(self, job: Expected, state: State, result: ContainerResult, before: State | None) -> None:
        assert before is job.state
        if not before.terminal:
            self.model.end(job.id, state, result)

    @rule(node=nodes, pick=picks)
    def retry(self, node: str, pick: int) -> None:
        old, new_id = self.job(pick), self.new_id()
        if old is None:
            return
        try:
            answer = self.do(self.stores[node].retry(old.id, new_id))
        except Refusal as refusal:
            self._refused(old.container, old.caller, refusal)
            return
        if not old.data:
            assert answer is None
        elif old.state not in (State.FAILED, State.CANCELLED):
            assert answer is old.state
        elif old.retried_as in self.model.jobs:
            assert answer == old.retried_as
        else:
            assert answer == new_id
            old.retried_as, old.dead = new_id, False
            again = Expected(id=new_id, caller=old.caller, chain=old.chain, data=old.data)
            again.hasty, again.step, again.outputs = old.hasty, old.step, list(old.outputs)
            again.bulk = self._live(old.caller) >= BOUNDS.share
            self.model.accept(again)

    @rule(node=nodes, caller=callers, chain=chains, kind=st.sampled_from(["stream", "running", "succeeded", "failed"]))
    def open(self, node: str, caller: str, chain: tuple[str, ...], kind: str) -> None:
        """A stream of this node, or a job that somebody reports."""
        stream = kind == "stream"
        data, error = b"{}" if stream else b"", "reported as failed" if kind == "failed" else ""
        state = State.RUNNING if stream else State(kind)
        job_id = self.new_id()
        for first in (True, False):
            opened = self.stores[node].open(CALLERS[caller], job_id, chain, state, data=data, error=error)
            assert self.do(opened) is first
        job = Expected(id=job_id, caller=caller, chain=chain, data=data, in_lane=False, attempt=1)
        job.state, job.stream = state, node if stream else ""
        job.result = ContainerError(container=chain[0], error=error) if error else None
        self.model.accept(job)

    @rule(node=nodes, caller=callers, gone=st.booleans())
    def read(self, node: str, caller: str, gone: bool) -> None:
        """By id, and the lists; of one caller, and of all."""
        store, jobs = self.stores[node], list(self.model.jobs.values())
        asked = [job.id for job in jobs] + [self.new_id()] * gone
        found = self.do(store.get(asked, intermediate=True, caller=caller))
        assert [job.id if job else None for job in found] == [
            job.id if job.caller == caller else None for job in jobs
        ] + [None] * gone
        for job in found:
            if job is not None:
                expected = self.model.jobs[job.id]
                assert (job.state, job.step, job.attempt) == (expected.state, expected.step, expected.attempt)
                assert [each.output for each in job.intermediate] == expected.outputs
                assert job.result == expected.result
        for pending in (None, True, False):
            wanted = [job for job in jobs if pending in (None, not job.state.terminal)]
            mine = [job.id for job in wanted if job.caller == caller]
            assert self.do(store.ids(caller, pending=pending)) == mine
            assert set(self.do(store.ids(None, pending=pending))) == {job.id for job in wanted}
        assert self.do(store.pending_count()) == len(self.model.live())
        assert {job.id for job in self.do(store.dead(100))} == {job.id for job in jobs if job.dead}

    # Nodes

    @rule(node=nodes, container=containers, count=st.integers(1, 4))
    def claim(self, node: str, container: str, count: int) -> None:
        model = self.model
        lane, bulk = (model.in_turn(container, bulk=bulk) for bulk in (False, True))
        claims, _ = self.do(self.stores[node].claim(container, count))
        taken = [claim.job_id for claim in claims]
        assert len(taken) <= count
        if container not in model.damaged | model.littered | model.regrouped:
            assert taken in ((lane + bulk)[:count], (bulk + lane)[:count]), "first in, first out"
        for claim in claims:
            model.begin(claim, node)
            self.claims.append((node, claim))

    @rule(pick=picks, good=st.booleans(), times=st.integers(1, 2))
    def finish(self, pick: int, good: bool, times: int) -> None:
        """Also by a claim that no longer counts, and a second time."""
        node, claim = self.given(pick)
        for _ in range(times if claim else 0):
            self._finish(node, claim, good=good)

    def _finish(self, node: str, claim: Claim, *, good: bool) -> None:
        result = self.outcome(claim.container, good=good)
        expected = self.model.finish(claim, result) if self.model.holds(claim) else None
        assert self.do(self.stores[node].finish(claim, result)) is expected

    @rule(node=nodes, good=st.booleans())
    def work(self, node: str, good: bool) -> None:
        """Take a step from each lane; all that runs here comes to an end."""
        for container in CONTAINERS:
            self.claim(node, container, 1)
        for owner, claim in self.claims:
            if owner == node and self.model.holds(claim):
                self._finish(node, claim, good=good)

    @rule(pick=picks)
    def release(self, pick: int) -> None:
        node, claim = self.given(pick)
        if claim is not None:
            self._release(node, claim)

    def _release(self, node: str, claim: Claim) -> None:
        expected = self.model.queue(claim.job_id) if self.model.holds(claim) else None
        assert self.do(self.stores[node].release(claim)) is expected

    @rule(node=nodes)
    def renew(self, node: str) -> None:
        mine = [claim for owner, claim in self.claims if owner == node]
        lost = self.do(self.stores[node].renew(mine))
        assert lost == [claim for claim in mine if not self.model.holds(claim)]
        self.see_lanes()

    @rule(pick=picks, good=st.booleans(), first=st.booleans())
    def race(self, pick: int, good: bool, first: bool) -> None:
        """A cancel and an outcome at the same moment, from two nodes: one of them counts."""
        node, claim = self.given(pick)
        if claim is None or not self.model.holds(claim):
            return
        job = self.model.jobs[claim.job_id]
        result, reason = (
            self.outcome(claim.container, good=good),
            ContainerError(container="", error="cancelled: enough"),
        )
        ended = self.stores[NODES[first]].end(job.id, State.CANCELLED, reason)
        state, before = self.do(_together(self.stores[node].finish(claim, result), ended))
        if before is not State.RUNNING:  # the outcome was first; there may have been a next step to cancel
            assert state is self.model.finish(claim, result)
        else:
            assert state is None
        self._ends(job, State.CANCELLED, reason, before)

    @rule(pick=picks, good=st.booleans())
    def overtake(self, pick: int, good: bool) -> None:
        """A node freezes, another takes over; when the first wakes, its words count no more."""
        _, claim = self.given(pick)
        if claim is None or not self.model.holds(claim):
            return
        owner = self.model.jobs[claim.job_id].node
        other = next(node for node in NODES if node != owner)
        self.reclaim(other, claim.container, over=True)
        self.claim(other, claim.container, 4)
        self.renew(owner)
        self._finish(owner, claim, good=good)
        self._release(owner, claim)

    @rule(node=nodes)
    def crash(self, node: str) -> None:
        """A node dies, and its next life recovers: its steps are queued again, its streams end."""
        self.stop(node)
        self.start(node)
        store = self.stores[node]
        for container in CONTAINERS:
            mine = [job_id for job_id in self.model.running(container) if self.model.jobs[job_id].node == node]
            self._taken_back(
                container, mine, store.reclaim(container, idle_s=0, max_deliveries=DEATHS, held_by=store.name)
            )
        streams = [job for job in self.model.live() if job.stream == node]
        left = self.do(store.left_streams(store.name))
        assert set(left) == {job.id for job in streams}
        for job in streams:
            error = ContainerError(container="", error="the node stopped while it streamed")
            self._ends(job, State.FAILED, error, self.do(store.end(job.id, State.FAILED, error)))

    @rule(node=nodes, container=containers, over=st.booleans(), deaths=st.sampled_from([1, DEATHS]))
    def reclaim(self, node: str, container: str, over: bool, deaths: int = DEATHS) -> None:
        """over: all leases of the lane are; else none. deaths: of its worker, with which a job fails."""
        idle_s = 0 if over else 3600
        taken = self.stores[node].reclaim(container, idle_s=idle_s, max_deliveries=deaths)
        self._taken_back(container, self.model.running(container) if over else [], taken, deaths)

    @rule(node=nodes, container=containers)
    def unheard(self, node: str, container: str) -> None:
        """The answers to this node's claims were lost: what it never began is queued again, and counts as no death."""
        mine = [job_id for job_id in self.model.running(container) if self.model.jobs[job_id].node == node]
        changed = self.do(self.stores[node].reclaim(container, idle_s=0, held_by=node))
        assert set(dict(changed)) <= set(mine)
        if container not in self.model.damaged:
            assert len(changed) == len(mine)
        for job_id, state in changed:
            assert self.model.queue(job_id) is state

    def _taken_back(
        self, container: str, expected: list[str], taken: Awaitable[list[tuple[str, State]]], deaths: int = DEATHS
    ) -> None:
        changed = self.do(taken)
        assert set(dict(changed)) <= set(expected)
        if container not in self.model.damaged:
            assert len(changed) == len(expected)
        for job_id, state in changed:
            assert self.model.lose(job_id, deaths) is state

    @rule(node=nodes, over=st.sampled_from(["", "", "gone_s", "queue_timeout_s", "timeout_s"]))
    def look(self, node: str, over: str) -> None:
        """over: the limit that is: no node has been heard of lately, or a job waits or lives too long."""
        self.age()
        changes, more = self.do(self.stores[node].look(**LIMITS | ({over: HASTE_S} if over else {})))
        assert not more
        overdue = {job.id for job in self.model.live() if _overdue(job, over)}
        failed = {each.job_id for each in changes if each.change == "failed"}
        assert failed <= overdue
        spared = overdue - failed  # its entry was lost, and its wait begins anew with the fresh one
        assert {self.model.jobs[job_id].container for job_id in spared} <= self.model.damaged
        for each in changes:
            job = self.model.jobs[each.job_id]
            if each.change == "failed":
                result = ContainerError(container=job.chain[job.step], error=each.reason)
                self.model.end(job.id, State.FAILED, result)
            else:
                assert each.change == ("held" if job.state is State.RUNNING else "queued")
                assert job.container in self.model.damaged, "what was well was changed"
                self._mended(job)
        self.see_lanes()

    def _mended(self, job: Expected) -> None:
        kept = Kept(self.raw)
        entry = kept.records()[job.id]["entry"]
        assert entry in kept.entries(job.container)
        assert kept.leases(job.container).get(entry) == (job.node if job.state is State.RUNNING else None)

    @rule(node=nodes, state=st.sampled_from(ENDS), over=st.booleans())
    def purge(self, node: str, state: State, over: bool) -> None:
        """over: their retention is."""
        self.age()
        removed = self.do(self.stores[node].purge(state, 0 if over else 3600))
        assert removed == (self.model.purge(state) if over else 0)

    # Damage

    @rule(kind=st.sampled_from(DAMAGE), container=containers, pick=picks, seen=st.booleans())
    def damage(self, kind: str, container: str, pick: int, seen: bool) -> None:
        """seen: a look comes by before anything else does."""
        lane, kept = f"{KEY}{'bulk' if pick % 4 == 0 else 'lane'}:{container}", Kept(self.raw)
        entries, leases = list(kept.entries(container)), list(kept.leases(container))
        if kind == "lane":
            self.raw.delete(lane)
        elif kind == "group" and self.raw.exists(lane):
            self.raw.xgroup_destroy(lane, "nodes")
        elif kind == "lease" and leases:
            stream, entry = self.place(container, leases[pick % len(leases)])
            self.raw.xack(stream, "nodes", entry)
        elif kind == "entry" and entries:
            self.raw.xdel(*self.place(container, entries[pick % len(entries)]))
        elif kind == "twice" and entries:
            job_id, step = kept.entries(container)[entries[pick % len(entries)]]
            self.raw.xadd(lane, {"j": job_id, "s": step})
        elif kind == "litter":
            self.raw.xadd(lane, [{"x": "1"}, {"j": "nobody", "s": "0"}, {"j": "nobody", "s": "x"}][pick % 3])
        elif kind == "scripts":
            self.raw.script_flush()
        if kind in ("twice", "litter"):  # for good: nobody reads what stands behind what is of use
            self.model.littered.add(container)
        elif kind != "scripts":
            self.model.damaged.add(container)
        if kind in ("lane", "group"):
            self.model.regrouped.add(container)
        if seen:
            self.look(NODES[0], over="")

    # What must hold

    @invariant()
    def all_agrees(self) -> None:
        if hasattr(self, "model"):
            agree(self.model, Kept(self.raw))

    def drain(self) -> None:
        """Healthy nodes take over: every job comes to its end, and nothing is left behind."""
        for _ in range(100):
            if not self.model.live():
                break
            for node in NODES:
                self.crash(node)
                self.look(node, over="")
                for container in CONTAINERS:
                    self.reclaim(node, container, over=True)
                    self.claim(node, container, 100)
                self.work(node, good=True)
            for job in self.model.live():
                if not job.in_lane and not job.stream:  # reported as running by somebody who says no more
                    self._ends(job, State.FAILED, None, self.do(self.stores["n1"].end(job.id, State.FAILED)))
        assert not self.model.live()
        for container in CONTAINERS:
            self.claim("n1", container, 100)
        agree(self.model, kept := Kept(self.raw))
        assert [kept.entries(container) or kept.leases(container) for container in CONTAINERS] == [{}] * 3
        for state in ENDS:
            self.purge("n2", state, over=True)
        left = [key for key in Kept(self.raw).keys if not key.startswith(("lane:", "bulk:", "once:", "owner:"))]
        left = [key for key in left if key not in ("nodes", "served", "mark", "back")]
        assert left == []


async def _together(*work: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*work))


def _overdue(job: Expected, over: str) -> bool:
    if "timeout_s" in (over, job.hasty):
        return True
    if job.in_lane:
        return over == "gone_s" or (job.state is State.QUEUED and (over != "" or job.hasty != ""))
    return over == "gone_s" and job.stream != ""


@pytest.fixture
def machine(server: RedisServer) -> type[Machine]:
    return type("Play", (Machine,), {"server": server})


@pytest.mark.timeout(0 if FULL else 120)
def test_the_store_keeps_its_promises(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=PLAYS,
            stateful_step_count=STEPS,
            derandomize=not FULL,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
