"""What the main process and its workers say to each other: a closed set of messages, and the channel that carries them.

A message is its length (4 bytes) and a tagged MessagePack map. A question has a number, which its `Done` repeats.
"""

import asyncio
import itertools
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import msgspec

from node.registry import Standing
from node.situation import Situation

SIZE_BYTES = 4
BEHIND_BYTES = 16 * 1024 * 1024  # that a process has not taken: it stands still, and is given up


class Message(msgspec.Struct, frozen=True, tag=True):
    """slot: the number of a loan, chosen by who borrows. ask: the number of a question."""


class Hello(Message, frozen=True, kw_only=True):
    """To a worker, first: how things are. store_url: where the node's own server is; "" for an external one."""

    store_url: str
    situation: Situation
    standings: dict[str, Standing]


class Told(Message, frozen=True, kw_only=True):
    """To a worker: the node's situation now."""

    situation: Situation


class Stands(Message, frozen=True, kw_only=True):
    """To a worker: how a container stands now."""

    container: str
    standing: Standing


class Begin(Message, frozen=True, kw_only=True):
    """To a worker: its name is its own. It puts right what its earlier life left, says `Recovered`, and works."""


class Recovered(Message, frozen=True, kw_only=True):
    pass


class Stop(Message, frozen=True, kw_only=True):
    """To a worker: end what there is, then end."""


class Tidy(Message, frozen=True, kw_only=True):
    """Question to a runner: renew what runs (`Runner.tidy`)."""

    ask: int


class Count(Message, frozen=True, kw_only=True):
    """Question to a worker: say what was counted, before the answer."""

    ask: int


class Counted(Message, frozen=True, kw_only=True):
    """From a worker: by how much counters have grown (`Metrics.grown`)."""

    grown: dict[str, dict[str, float]]


class Show(Message, frozen=True, kw_only=True):
    """Question from a door: the text of the node's metrics."""

    ask: int


class WhyDown(Message, frozen=True, kw_only=True):
    """Question from a worker: `Care.why_down`."""

    ask: int
    container: str


class Done(Message, frozen=True, kw_only=True):
    """An answer. error: why it could not be done, else ""."""

    ask: int
    words: str = ""
    error: str = ""


class StepFailed(Message, frozen=True, kw_only=True):
    """From a worker: `Care.note_failed_step`."""

    container: str


class Want(Message, frozen=True, kw_only=True):
    """A slot for a stream is wanted: by a door from the main process, by that from a runner.

    held: it was lent before the runner was replaced, so it is not waited for.
    """

    slot: int
    container: str
    job_id: str
    caller: str = ""
    held: bool = False


class Got(Message, frozen=True, kw_only=True):
    """It is lent."""

    slot: int


class Refused(Message, frozen=True, kw_only=True):
    """It is not; a refusal as its code, words and facts."""

    slot: int
    code: str
    message: str
    params: dict[str, Any]
    retry_after_s: float | None


class Lost(Message, frozen=True, kw_only=True):
    """It was lent, and whoever has it must stop: the job was ended, or the node ends."""

    slot: int


class Leave(Message, frozen=True, kw_only=True):
    """It is not wanted any more, whether or not it was lent."""

    slot: int


Any_ = (
    Hello
    | Told
    | Stands
    | Begin
    | Recovered
    | Stop
    | Tidy
    | Count
    | Counted
    | Show
    | WhyDown
    | Done
    | StepFailed
    | Want
    | Got
    | Refused
    | Lost
    | Leave
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any_] = msgspec.msgpack.Decoder(Any_)


class Gone(Exception):
    """The process at the other end has ended."""


class Channel:
    """One end. The other end is gone when `serve` returns; what is sent then is lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Done]] = {}

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Without waiting, also when the other end is gone; whoever does not take what is sent to him is cut off."""
        transport = self._writer.transport
        if transport.is_closing():
            return  # uvloop raises where asyncio only drops what is written
        if transport.get_write_buffer_size() > BEHIND_BYTES:
            transport.abort()
            return
        text = _encoder.encode(message)
        self._writer.write(len(text).to_bytes(SIZE_BYTES) + text)

    async def ask(self, question: Callable[[int], Message], within_s: float) -> Done:
        """Raises `Gone`, also when there is no answer in time."""
        if self._writer.transport.is_closing():
            raise Gone
        number = next(self._numbers)
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.send(question(number))
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise Gone from None
        finally:
            del self._asked[number]

    async def receive(self) -> Any_:
        """The next message that is no answer. Raises `Gone`."""
        while True:
            try:
                size = int.from_bytes(await self._reader.readexactly(SIZE_BYTES))
                message = _decoder.decode(await self._reader.readexactly(size))
            except (asyncio.IncompleteReadError, OSError):
                raise Gone from None
            if not isinstance(message, Done):
                return message
            if (answer := self._asked.get(message.ask)) and not answer.done():
                answer.set_result(message)

    async def finish(self) -> None:
        """Close it, once all that was said is on its way."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def close(self) -> None:
        """The other end is gone. Questions without an answer are given up."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Gone())
        self._writer.transport.abort()
