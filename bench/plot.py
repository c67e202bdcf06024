"""Draws a run's figures. matplotlib is in an environment of its own (`make bench-peers`), where this file runs as a
program: `plot.py WHAT FILE.svg`, the JSON on its standard input. It knows nothing else of this package.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).parents[1] / ".venv-peers" / "plot" / "bin" / "python"

Document = Mapping[str, Any]

PANELS = {
    "post_waiting": ("POST/s, no container running", "per_s"),
    "post_running": ("POST/s, jobs running", "per_s"),
    "batches": ("jobs accepted/s by batches", "per_s"),
    "chain1": ("end to end jobs/s, chain of 1", "per_s"),
    "chain3": ("end to end jobs/s, chain of 3", "per_s"),
    "poll1": ("polls/s, 1 id", "per_s"),
    "one1": ("one job on an idle node, chain of 1, p50 ms", "p50_ms"),
    "one3": ("one job on an idle node, chain of 3, p50 ms", "p50_ms"),
    "slow": ("500 jobs of 50 ms on 64 slots, s", "s"),
}
NAMES = {
    "bare": "bare handler",
    "committed": "bare + commit",
    "echo": "container alone",
    "direct": "container alone",
    "smallest": "smallest node",
    "node": "node, one process",
    "workers": "node, all workers",
    "everysec": "node, everysec",
}
OURS = ("node", "workers")


def draw(what: str, document: Document, file: Path) -> None:
    """`what` is a key of `DRAWN`. Says so when there is no matplotlib."""
    if not PYTHON.exists():
        print(f"{file} was not drawn: `make bench-peers` installs matplotlib", file=sys.stderr)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([PYTHON, __file__, what, file], input=json.dumps(document), text=True, check=True)
    print(f"drawn: {file}", file=sys.stderr)


def comparison(document: Document) -> Any:
    """A panel for each load, a bar for each subject: the median, and a line from the lowest to the highest."""
    import matplotlib.pyplot as plt

    panels = {group: panel for group, panel in PANELS.items() if group in document["rounds"][0]}
    rows = -(-len(panels) // 3)
    figure, grid = plt.subplots(rows, 3, figsize=(13, 2.6 * rows), squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (group, (title, name)) in zip(grid.flat, panels.items(), strict=False):
        _bars(axes, document["rounds"], group, name)
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def _bars(axes: Any, rounds: Sequence[Any], group: str, name: str) -> None:
    values = {
        subject: [each[group][subject][name] for each in rounds]
        for subject, figures in rounds[0][group].items()
        if name in figures
    }
    labels = [NAMES.get(subject, subject) for subject in values]
    medians = [statistics.median(each) for each in values.values()]
    ranges = [
        [median - min(each) for median, each in zip(medians, values.values(), strict=True)],
        [max(each) - median for median, each in zip(medians, values.values(), strict=True)],
    ]
    colours = ["#1f77b4" if subject in OURS else "#c9ced6" for subject in values]
    bars = axes.barh(labels, medians, xerr=ranges, color=colours, ecolor="#555555", capsize=2)
    axes.bar_label(bars, [f" {median:,.0f}" if median >= 100 else f" {median:.2f}" for median in medians], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_visible(False)  # the bars have their numbers
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def growth(document: Document) -> Any:
    """By the number of jobs kept: rates as shares of those with few jobs; memory; how long reading takes."""
    import matplotlib.pyplot as plt

    sizes = document["sizes"]
    at = [size["jobs"] for size in sizes]
    figure, (rates, memory, reads) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name, label in (("submit", "submit"), ("poll", "poll of 1 id"), ("run", "end to end, chain of 1")):
        shares = [_shares(size["rates"][name]) for size in sizes]
        line = rates.plot(at, [statistics.median(each) for each in shares], marker="o", label=label)[0]
        rates.fill_between(at, *zip(*((min(each), max(each)) for each in shares), strict=True), alpha=0.15, lw=0)
        line.set_markersize(4)
    rates.axhline(0.9, color="#555555", lw=0.8, ls=":")
    rates.set_ylim(0, 1.4)
    rates.set_title("rates, as shares of those with 1,000 jobs", fontsize=10, loc="left")
    memory.plot(at, [size["bytes_per_job"] for size in sizes], marker="o", label="store, bytes per job")
    memory.plot(at, [size["resident_bytes"] / 2**20 for size in sizes], marker="o", label="node, resident MiB")
    memory.set_ylim(0)
    memory.set_title("memory", fontsize=10, loc="left")
    reads.plot(at, [size["results_ms"] for size in sizes], marker="o", label="results of 100 jobs")
    reads.plot(at, [size["part_ms"] for size in sizes], marker="o", label="100 ids of a list")
    reads.plot(
        at, [size["list_ms"] / size["listed"] * 1000 for size in sizes], marker="o", label="a whole list, per 1,000 ids"
    )
    reads.set_ylim(0)
    reads.set_title("reading on an idle node, ms", fontsize=10, loc="left")
    for axes in (rates, memory, reads):
        axes.set_xscale("log")
        axes.set_xlabel("finished jobs kept", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8, frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _shares(rates: Mapping[str, Sequence[float]]) -> list[float]:
    return [many / few for few, many in zip(rates["few"], rates["many"], strict=True)]


DRAWN = {"comparison": comparison, "growth": growth}


def main(what: str, file: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "stoker"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text as text: a quarter of the size
    figure = DRAWN[what](json.load(sys.stdin))
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
