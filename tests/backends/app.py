"""The service that the backend tests run: as a container, as a process, as a service elsewhere. Standard library only.

Each GET does one thing that a container may do to its node, or tells one thing that it can see from inside.
"""

import contextlib
import errno
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELD: list[Any] = []


def index(**_: str) -> Any:
    return {"greeting": os.environ.get("GREETING", ""), "arguments": sys.argv[1:], "environment": dict(os.environ)}


def hand_on(data: Any) -> Any:
    """Answers this, as input for the next container of a chain."""
    return data


def leave(code: str) -> Any:
    """Ends at once, without an answer."""
    sys.stdout.flush()
    os._exit(int(code))


def eat(mib: str) -> Any:
    """Takes memory and touches it."""
    HELD.extend(b"x" * 1024 * 1024 for _ in range(int(mib)))
    return len(HELD)


def worker(mib: str) -> Any:
    """Has another process eat it; when that is killed, hangs up without an answer."""
    eater = f"held = [b'x' * 1024 * 1024 for _ in range({int(mib)})]"
    subprocess.run([sys.executable, "-c", eater], check=True)
    return {}


def say(lines: str, width: str = "0") -> Any:
    """Prints numbered lines."""
    for number in range(int(lines)):
        print(f"line {number} ".ljust(int(width), "x"), flush=True)
    return {}


def flood(mib: str) -> Any:
    """Prints that much as fast as it can."""
    line = b"flood".ljust(1023, b"x") + b"\n"
    for _ in range(int(mib) * 1024):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
    print("the flood is over", flush=True)
    return {}


def send(host: str, port: str) -> Any:
    """Sends a datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"hello", (host, int(port)))
    return {}


def connect(host: str, port: str) -> Any:
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return "connected"
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def look(**_: str) -> Any:
    """What it is allowed to do."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return {
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": int(status["NoNewPrivs"]),
        "uid": os.getuid(),
        "default_route": any(route[1] == "00000000" for route in routes),
        "init": Path("/proc/1/cmdline").read_bytes().split(b"\0")[0].decode(),
    }


def write(path: str, mib: str = "0") -> Any:
    """Writes a file: `ok`, or the name of the error."""
    try:
        with open(path, "wb") as file:
            for _ in range(int(mib) or 1):
                file.write(b"x" * (1024 * 1024 if int(mib) else 1))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def read(path: str) -> Any:
    return Path(path).read_text()


def threads(count: str) -> Any:
    """Starts threads that stay: how many it was allowed."""
    started = 0
    with contextlib.suppress(RuntimeError):
        for _ in range(int(count)):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            started += 1
    return started


def heir(session: str) -> Any:
    """Starts a process that would outlive it, in a session of its own if so asked: its id."""
    child = subprocess.Popen(["sleep", "1000"], start_new_session=session == "own")
    HELD.append(child)
    return child.pid


def sleep(seconds: str) -> Any:
    time.sleep(float(seconds))
    return {}


def fork(seconds: str) -> Any:
    """A fork bomb that ends: how often it was not allowed another process."""
    refused = 0
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        try:
            HELD.append(subprocess.Popen(["sleep", seconds]))
        except OSError:
            refused += 1
    return refused


def spin(seconds: str) -> Any:
    """Burns processors, with more processes than there are."""
    burn = f"import time; end = time.monotonic() + {float(seconds)}\nwhile time.monotonic() < end: pass"
    for each in [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(8)]:
        each.wait()
    return {}


ACTIONS: dict[str, Callable[..., Any]] = {
    action.__name__: action
    for action in (
        index,
        hand_on,
        leave,
        eat,
        worker,
        say,
        flood,
        connect,
        send,
        look,
        write,
        read,
        threads,
        heir,
        sleep,
        spin,
        fork,
    )
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.answer(ACTIONS[url.path.strip("/") or "index"](**dict(urllib.parse.parse_qsl(url.query))))

    def do_POST(self) -> None:
        """A step: the same actions, by `{"action": name, ...}` as its data."""
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["data"]
        self.answer(ACTIONS[wish.pop("action", "index")](**wish))

    def answer(self, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what is printed."""


if __name__ == "__main__":
    if os.environ.get("IGNORE_TERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    address = (os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "3000")))
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()
