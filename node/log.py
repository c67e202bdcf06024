"""Structured logs: one event a line, as JSON for machines or as text for a terminal.

Event names and field names are constants of the code (`job_id, caller, lane, step, attempt, state, container, node_id,
duration_s, code, request_id`); payloads are never logged at INFO.

Lines are written by threads: who reads standard error, or the disk under a file, may stand still or be gone, and the
node must not. What finds the queue before a thread full is left out and counted (`log_lines_dropped`).
"""

import atexit
import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from logging.handlers import RotatingFileHandler
from typing import Any

import msgspec
import structlog

from node.config import Log

QUEUED_LINES = 10_000  # that wait for one sink
BATCH_LINES = 500  # in one write
PAUSE_S = 0.02  # between writes: what is said meanwhile goes out together, which costs less
FLUSH_S = 1.0  # longest wait of an exit for a sink that takes nothing

CURRENT_REQUEST: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is worked on; it stands in every line that is written meanwhile."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How lines look: as text for a terminal, or as JSON."""

    console: bool
    colors: bool


def look(settings: Log) -> Look:
    """As standard error of this process asks for it."""
    terminal = sys.stderr.isatty()
    return Look(console=settings.format == "console" or (settings.format == "auto" and terminal), colors=terminal)


def set_up(settings: Log, **common: Any) -> None:
    """Configure logging for the main process; `common` fields stand in every line."""
    sinks = [_Sink("stderr", _to_stderr)]
    if settings.path:
        sinks.append(_Sink("log.path", _File(settings).write))
    _configure(settings, look(settings), sinks, common)


def set_up_worker(settings: Log, look: Look, **common: Any) -> None:
    """The same for a worker, whose standard error is read by the main process (`pass_on`)."""
    _configure(settings, look, [_Sink("main", _to_stderr)], common)


def pass_on(line: bytes) -> None:
    """Write a line that another process has made."""
    factory = structlog.get_config()["logger_factory"]
    if isinstance(factory, _Sinks):
        factory.msg(line)


def _configure(settings: Log, look: Look, sinks: list["_Sink"], common: dict[str, Any]) -> None:
    structlog.configure(
        processors=[
            _Fields(common),
            *([_console(look), _encoded] if look.console else [_json]),
        ],
        wrapper_class=_logger(getattr(logging, settings.level.upper())),
        logger_factory=_Sinks(sinks),
        cache_logger_on_first_use=True,
    )
    for sink in sinks:
        sink.start()
        atexit.register(sink.flush)


def flush() -> None:
    """Wait until what was said is written, `FLUSH_S` at most for each place; for an exit that leaves no time."""
    factory = structlog.get_config()["logger_factory"]
    if isinstance(factory, _Sinks):
        factory.flush()


def _console(look: Look) -> structlog.dev.ConsoleRenderer:
    """With plain tracebacks: the renderer's own ones show the values of variables, and a secret may be one."""
    return structlog.dev.ConsoleRenderer(colors=look.colors, exception_formatter=structlog.dev.plain_traceback)


def _logger(level: int) -> type[Any]:
    """structlog's logger for a level, without the copies that it makes of each event on the way to its steps."""
    filtering: Any = structlog.make_filtering_bound_logger(level)

    class Logger(filtering):  # type: ignore[misc]
        def _proxy_to_logger(self, method_name: str, event: str | None = None, **fields: Any) -> None:
            line: Any = {**self._context, **fields} if self._context else fields
            line["event"] = event
            for step in self._processors:
                line = step(self._logger, method_name, line)
            self._logger.msg(line)

    return Logger


class _Fields:
    """Adds to an event what every line has. One step instead of structlog's three, which take most of a line's time."""

    def __init__(self, common: Mapping[str, Any]) -> None:
        self._common = dict(common)

    def __call__(self, logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if request_id := CURRENT_REQUEST.get():
            event["request_id"] = request_id
        event.update(self._common)
        event["level"] = method
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        event["timestamp"] = f"{_shown(second)}.{nanoseconds // 1000:06}Z"
        return event


@lru_cache(maxsize=1)
def _shown(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


_JSON = msgspec.json.Encoder(enc_hook=str)


def _json(logger: Any, method: str, event: structlog.typing.EventDict) -> bytes:
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, method, event)
    try:
        return _JSON.encode(event)
    except UnicodeEncodeError:  # what is no text: escaped
        return json.dumps(event, default=str).encode()


def _encoded(logger: Any, method: str, line: Any) -> bytes:
    return str(line).encode("utf-8", "backslashreplace")


class _Sinks:
    """Where lines go: standard error and, if configured, a file."""

    def __init__(self, sinks: list["_Sink"]) -> None:
        self._sinks = sinks

    def __call__(self, *names: Any) -> "_Sinks":
        return self

    def msg(self, line: bytes) -> None:
        for sink in self._sinks:
            sink.put(line)

    debug = info = warning = error = critical = exception = msg

    def flush(self) -> None:
        for sink in self._sinks:
            sink.flush()


class _Sink:
    """One place, with the thread that writes there: many lines at once, with a line feed after each."""

    def __init__(self, name: str, write: Callable[[bytes], None]) -> None:
        self._name = name
        self._write = write
        self._lines: deque[bytes] = deque()
        self._some = threading.Event()
        self._busy = False
        self._full = 0  # lines that found the queue full, and that could not be written; each has one writer
        self._failed = 0
        self._told = 0

    def start(self) -> None:
        # A daemon: a stuck one must not hold the exit up.
        threading.Thread(target=self._work, name=f"log-{self._name}", daemon=True).start()

    def put(self, line: bytes) -> None:
        if len(self._lines) >= QUEUED_LINES:
            self._full += 1
            return
        self._lines.append(line)
        if not self._some.is_set():
            self._some.set()

    def flush(self) -> None:
        """Wait until all is written, `FLUSH_S` at most."""
        end = time.monotonic() + FLUSH_S
        while (self._lines or self._busy) and time.monotonic() < end:
            time.sleep(PAUSE_S)

    def _work(self) -> None:
        while True:
            self._some.wait()
            self._busy = True  # before the queue is emptied, for `flush`
            self._some.clear()  # before as well: who adds a line afterwards sets it again
            while self._lines:
                self._next([self._lines.popleft() for _ in range(min(len(self._lines), BATCH_LINES))])
            self._busy = False
            select.select([], [], [], PAUSE_S)  # time.sleep waits for a point in time, which a faked clock moves

    def _next(self, lines: list[bytes]) -> None:
        try:
            self._write(b"\n".join(lines) + b"\n")
        except (OSError, ValueError):  # nobody is there to be told: no reader, no space; ValueError: a closed file
            self._failed += len(lines)
            return
        dropped = self._full + self._failed
        if dropped > self._told and len(self._lines) < QUEUED_LINES // 2:  # or that line is dropped itself
            told, self._told = self._told, dropped
            log.warning("log_lines_dropped", sink=self._name, lines=dropped - told)


def _to_stderr(text: bytes) -> None:
    """Past Python's own buffer and its lock, which a stuck write would hold at the exit."""
    rest = memoryview(text)
    while rest:
        try:
            rest = rest[os.write(sys.stderr.fileno(), rest) :]
        except BlockingIOError:  # whoever started the node made it so
            select.select([], [sys.stderr.fileno()], [])


class _File(RotatingFileHandler):
    """The file of `log.path`, rotated by size."""

    def __init__(self, settings: Log) -> None:
        super().__init__(
            settings.path,
            maxBytes=settings.max_file_size,
            backupCount=settings.backup_count,
            encoding="utf-8",
        )
        self.terminator = ""

    def write(self, text: bytes) -> None:
        """Also what is no text: a worker's line may have been cut, and not all that writes there is Python."""
        self.handle(logging.LogRecord("stoker", logging.INFO, "", 0, text.decode(errors="replace"), None, None))

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise it, where logging would print it."""
        if (error := sys.exc_info()[1]) is not None:
            raise error
