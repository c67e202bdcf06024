"""Structured logs: one event a line, as JSON for machines or as text for a terminal.

Event names and field names are constants of the code (`job_id, caller, lane, step, attempt, state, container, node_id,
duration_s, code, request_id`); payloads are never logged at INFO.
"""

import json
import logging
import sys
from logging.handlers import RotatingFileHandler
from typing import Any, TextIO

import msgspec
import structlog

from node.config import Log


def set_up(settings: Log, **common: Any) -> None:
    """Configure logging for the process; `common` fields stand in every line."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if console else [structlog.processors.format_exc_info]),
            _console() if console else _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=_Sinks(sys.stderr, settings),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**common)


def _console() -> structlog.dev.ConsoleRenderer:
    """With plain tracebacks: the renderer's own ones show the values of variables, and a secret may be one."""
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _json(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=str).decode()
    except UnicodeEncodeError:  # what is no text: escaped
        return json.dumps(event, default=str)


class _Sinks:
    """Where lines go: standard error and, if configured, a file that is rotated by size."""

    def __init__(self, stream: TextIO, settings: Log) -> None:
        self._stream = stream
        self._file = None
        if settings.path:
            self._file = RotatingFileHandler(
                settings.path, maxBytes=settings.max_file_size, backupCount=settings.backup_count, encoding="utf-8"
            )

    def __call__(self, *names: Any) -> "_Sinks":
        return self

    def msg(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
        if self._file:
            self._file.handle(logging.LogRecord("stoker", logging.INFO, "", 0, line, None, None))

    debug = info = warning = error = critical = exception = msg
