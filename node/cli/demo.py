"""`stoker demo`: a node, three real services and one real job, from start to stop, in front of the reader's eyes."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 600.0  # for images or environments that must be built first
RUN_S = 60.0
STOP_S = 60.0
POLL_S = 0.1
SHOWN_CHARS = 120  # of one string in the printed result


class DemoFailed(Exception):
    """What went wrong, in words."""


class DockerOfNoUse(DemoFailed):
    """The engine answers, but a container could not be brought up with it."""


def run(config: Path, document: Path, backend: str, data_dir: Path) -> None:
    """Run the demo; falls back to local processes when Docker's engine answers but cannot make the images."""
    try:
        _run(config, document, backend, data_dir)
    except DockerOfNoUse as error:
        if backend == "docker":
            raise
        _say(f"{error}\nDocker is of no use here; once more with local processes.")
        _run(config, document, "process", data_dir)


def _run(config: Path, document: Path, backend: str, data_dir: Path) -> None:
    chain = [container["id"] for container in json.loads(config.read_text())["containers"]]
    with _node(config, backend, data_dir) as url:
        how = _call(url, "/info?verbose=true")["containers"][0]["backend"]
        how = "Docker answers: containers run in Docker" if how == "docker" else "containers run as local processes"
        _say(f"The node listens on {url}; {how}. It brings up {', '.join(chain)}.")
        _wait_for_containers(url)
        text = document.read_text()
        _say(f"POST /api/jobs: the chain {' -> '.join(chain)} on {document} ({len(text.split())} words)")
        job_id = _call(url, "/api/jobs", {"containers": chain, "data": {"text": text}})["id"]
        _say(f"accepted as {job_id}")
        result = _wait_for_job(url, job_id)
        print(json.dumps(_shortened(result), indent=2, ensure_ascii=False))
        if result["status"] != "success":
            raise DemoFailed(f"the job failed: {result['result']['error']}")
    _say("The node has stopped.")


@contextmanager
def _node(config: Path, backend: str, data_dir: Path) -> Iterator[str]:
    """A node on a free port, as a process; yields its URL, and stops it as an operator would."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "demo.log"
    command = [sys.executable, "-m", "node", "serve", "--config", str(config), "--port", "0"]
    command += ["--backend", backend, "--data-dir", str(data_dir)]
    with log.open("wb") as sink, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True) as process:
        try:
            first = process.stdout.readline() if process.stdout else ""
            if "http" not in first:
                process.wait(STOP_S)
                raise DemoFailed(f"the node did not start; the end of {log}:\n{log.read_text()[-2000:]}")
            yield first.split()[-1]
        finally:
            process.terminate()
            code = process.wait(STOP_S)
    if code:
        raise DemoFailed(f"the node ended with exit code {code}; see {log}")


def _wait_for_containers(url: str) -> None:
    told: dict[str, str] = {}
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        containers = _call(url, "/info?verbose=true")["containers"]
        for container in containers:
            _tell_container(container, told)
            if container["restarts"]:
                failed = DockerOfNoUse if container["backend"] == "docker" else DemoFailed
                raise failed(f"{container['id']} could not be started: {container['reason']}")
        if all(container["state"] == "ready" for container in containers):
            return
        time.sleep(POLL_S)
    raise DemoFailed(f"the containers were not ready after {START_S:g} s")


def _tell_container(container: dict[str, Any], told: dict[str, str]) -> None:
    words = f"{container['state']}: {container['reason']}"
    if told.get(container["id"]) != words:
        told[container["id"]] = words
        _say(f"  {container['id']:<12}{container['backend']:<9}{words[:90]}")


def _wait_for_job(url: str, job_id: str) -> Any:
    seen = 0
    deadline = time.monotonic() + RUN_S
    while time.monotonic() < deadline:
        (job,) = _call(url, f"/api/jobs?id={job_id}&intermediate=true")
        for step in job["intermediate_results"][seen:]:
            _say(f"  step {seen + 1} done: {step['container']}")
            seen += 1
        if job["status"] != "running":
            outcome = "done" if job["status"] == "success" else "failed"
            _say(f"  step {seen + 1} {outcome}: {job['result']['container']}")
            return job
        time.sleep(POLL_S / 10)
    raise DemoFailed(f"the job was not done after {RUN_S:g} s")


def _shortened(value: Any) -> Any:
    """For the screen: the document stands in every output, and once is enough."""
    if isinstance(value, str) and len(value) > SHOWN_CHARS:
        return f"{value[:SHOWN_CHARS]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value


def _call(url: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


_BEGAN = time.monotonic()


def _say(words: str) -> None:
    for line in words.splitlines():
        print(f"[{time.monotonic() - _BEGAN:5.1f} s] {line}", flush=True)
