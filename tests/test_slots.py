"""What processes say to each other, also when one of them is gone."""

import asyncio
import socket

import pytest
import uvloop

from node.messages import Channel, Count, Gone, Got, Refused, Stop, Want
from node.slots import Borrower


def test_what_is_said_to_a_process_that_is_gone_is_lost() -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair()
        channel = await Channel.over(ours)
        theirs.close()
        with pytest.raises(Gone):
            await channel.receive()
        channel.close()
        await asyncio.sleep(0)
        channel.send(Stop())
        with pytest.raises(Gone):
            async with asyncio.timeout(10):
                await channel.ask(lambda ask: Count(ask=ask), 60)

    uvloop.run(talk())  # as the node does; asyncio's own transports forgive more


async def test_the_next_process_is_asked_for_what_is_held_and_what_is_waited_for() -> None:
    borrower = Borrower()
    held, waited, refused = (borrower.want("a", f"j{i}") for i in range(3))
    borrower.heard(Got(slot=held.want.slot))
    borrower.heard(Refused(slot=refused.want.slot, code="unavailable", message="no", params={}, retry_after_s=None))
    ours, theirs = [await Channel.over(end) for end in socket.socketpair()]
    borrower.connect(ours)
    last = borrower.want("a", "j3")
    wants = [await theirs.receive() for _ in range(3)]
    for end in (ours, theirs):
        end.close()
    assert all(isinstance(want, Want) for want in wants)
    assert [(want.slot, want.held) for want in wants if isinstance(want, Want)] == [
        (held.want.slot, True),
        (waited.want.slot, False),
        (last.want.slot, False),
    ]
    assert refused.got.exception()
