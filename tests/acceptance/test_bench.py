"""The comparison runs and checks what it is answered. What it measures is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN_S = 100


@pytest.mark.acceptance
def test_the_comparison_runs_and_writes_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "comparison.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "single", "--json", str(file)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["medians"]["single"]
    assert {kind: figures["most"] for kind, figures in found.items()} == {"node": 1, "workers": 1}
