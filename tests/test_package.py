"""What is shipped: the wheel has all of the node and nothing else, and the lock can be checked."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([sys.executable, "-m", *command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "node"], cwd=ROOT, text=True, capture_output=True, check=True)
    assert shipped == set(tracked.stdout.split())


def test_the_installed_wheel_knows_its_commands_and_scripts(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    told = subprocess.run(
        [sys.executable, "-m", "node", "--help"], cwd=tmp_path, text=True, capture_output=True, check=True
    )
    for command in ("serve", "doctor", "keys", "config", "demo"):
        assert command in told.stdout
    assert (tmp_path / "node" / "store" / "scripts" / "submit.lua").exists()


def test_every_line_of_the_lock_has_its_hashes_and_no_address() -> None:
    lock = (ROOT / ".ci" / "requirements.lock").read_text()
    assert "://" not in lock
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        assert re.match(r"[A-Za-z0-9_.-]+==", entry), entry
        assert "--hash=sha256:" in entry, entry
