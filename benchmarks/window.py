"""The window: how long until it can be used, and whether a training makes it stutter.

Startup: a process per measurement, with and without the plugin in turn, from the start
of Python until the window (and the panel) is shown and the event loop is idle. Gaps: a
10 ms timer in a napari window that pages through a CT-like phantom ten times a second,
while nothing else runs, and while a pretraining in a worker uses all cores; a gap is
the time between two ticks, 10 ms being ideal.

    xvfb-run -a python benchmarks/window.py --out benchmarks/results/window.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_STARTUP = """
import os, time
import napari
viewer = napari.Viewer()
if {plugin}:
    viewer.window.add_plugin_dock_widget("napari-homolog", "Homolog")
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
QTimer.singleShot(0, QApplication.instance().quit)
napari.run()
print(time.time(), flush=True)
os._exit(0)
"""


def startup_s(plugin: bool) -> float:
    """Seconds from starting Python to an idle window."""
    began = time.time()
    run = subprocess.run(
        [sys.executable, "-c", _STARTUP.format(plugin=plugin)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(run.stdout.strip().splitlines()[-1]) - began


def gaps_ms(viewer: Any, seconds: float) -> list[float]:
    """Gaps of a 10 ms timer while slices are paged through."""
    from qtpy.QtCore import QEventLoop, Qt, QTimer

    ticks: list[float] = []
    loop, timer, pager = QEventLoop(), QTimer(), QTimer()
    timer.setTimerType(Qt.TimerType.PreciseTimer)
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    depth = int(viewer.dims.nsteps[0])

    def page() -> None:
        viewer.dims.set_current_step(0, (viewer.dims.current_step[0] + 1) % depth)

    pager.timeout.connect(page)
    timer.start(10)
    pager.start(100)
    QTimer.singleShot(round(seconds * 1000), loop.quit)
    loop.exec()
    timer.stop()
    pager.stop()
    return [1000 * (b - a) for a, b in itertools.pairwise(ticks)]


def summary(gaps: list[float]) -> dict[str, float]:
    """Percentiles of gaps."""
    cuts = statistics.quantiles(gaps, n=100)
    return {
        "median_ms": round(statistics.median(gaps), 1),
        "p95_ms": round(cuts[94], 1),
        "p99_ms": round(cuts[98], 1),
        "max_ms": round(max(gaps), 1),
        "ticks": len(gaps),
    }


def start_training(folder: Path) -> Any:
    """S2DC on the phantom in a worker of its own, on all cores; returns the run."""
    from homolog.events import drain
    from homolog.phantom.phantom import write_cohort
    from homolog.runs import launch
    from homolog.runs.run import Run
    from homolog.store.build import prepare_store

    write_cohort(folder / "scans", 4, seed=0, shape=(48, 64, 64), spacing_mm=(6, 6, 6))
    drain(prepare_store([folder / "scans"], folder / "store"))
    config = {
        "unresolved": True,
        "method": "s2dc",
        "stores": [str(folder / "store")],
        "recipe": "cpu",
        "settings": {"training": {"steps": 100_000}},
    }
    run = Run.create(folder / "run", "pretrain", config)
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    launch.start(run)
    until = time.monotonic() + 180
    while run.last_step() is None:
        if time.monotonic() > until or not run.is_alive():
            raise RuntimeError(f"the training did not begin: {run.state()}")
        time.sleep(0.5)
    return run


def measure_gaps(seconds: float, rounds: int) -> dict[str, Any]:
    """Gaps without and with a training, in turn."""
    import napari

    from homolog.gui.files.reader import phantom_patient
    from homolog.gui.window import dock_panel
    from homolog.runs import launch

    idle: list[float] = []
    busy: list[float] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        viewer = napari.Viewer()
        for data, attributes, kind in phantom_patient():
            getattr(viewer, f"add_{kind}")(data, **attributes)
        panel = dock_panel(viewer)
        gaps_ms(viewer, 2)  # first draws
        for _ in range(rounds):
            idle += gaps_ms(viewer, seconds)
        run = start_training(Path(scratch))
        panel.visit("Runs", {"run": str(run.folder)})
        try:
            gaps_ms(viewer, 2)
            for _ in range(rounds):
                busy += gaps_ms(viewer, seconds)
            steps = run.last_step().index
            assert run.is_alive(), "the training ended too early"
        finally:
            launch.stop(run, timeout_s=30, kill=True)
            viewer.close()
    assert "torch" not in sys.modules, "torch was imported in the window's process"
    return {"idle": summary(idle), "training": summary(busy), "steps_meanwhile": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    startup: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.starts):
        for plugin in startup:
            startup[plugin].append(startup_s(plugin))
    bare, docked = min(startup[False]), min(startup[True])
    result = {
        "startup": {
            "napari_s": round(bare, 2),
            "with_panel_s": round(docked, 2),
            "ratio": round(docked / bare, 2),
            "starts": options.starts,
        },
        "gaps": measure_gaps(options.seconds, options.rounds),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
