"""The window: how long until it can be used, and whether a training makes it stutter.

Startup: a process per measurement, with and without the plugin in turn, from the start
of Python until the window (and the panel) is shown and the event loop is idle. Gaps: a
10 ms timer in a napari window that pages through a CT-like phantom ten times a second,
while nothing else runs, and while a pretraining in a worker uses all cores; a gap is
the time between two ticks, 10 ms being ideal.

Actions (``--actions``): a CT-like scan of 512 x 512 x 300 voxels is opened, explored,
pinned and painted on with real mouse events; told is the longest work of the GUI
thread between two rests of its event loop: processor time (other processes take none of
it), without OpenGL drawing and composing, which stand beside it. ``sum_ms`` is that
stretch, ``napari_ms`` the part of it in which our code had called a function of
napari's (or none of ours was at work, and one of napari's was), by samples of the
stack every millisecond; ``ours_ms`` is the rest, that is our code, what it calls of
numpy or Qt, and all that Qt does by itself, in the stretch that has most of it
(``hand.Sampler`` says it exactly). The goal of 100 ms is for ``ours_ms``. What napari
alone needs for the like, in a process of its own, is told as ``napari``.

    xvfb-run -a python benchmarks/window.py --out benchmarks/results/window.json
"""

from __future__ import annotations

import argparse
import compileall
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
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


# Single actions on a large scan.

LARGE, CELLS, FEATURES = (300, 512, 512), (75, 128, 128), 32
SPACING_MM = (1.5, 0.8, 0.8)
_BAR_MS, _HOVER_BAR_MS = 100.0, 10.0
_TABS = ("Data", "Explore", "Landmarks", "Label", "Segment", "Pretrain", "Fine-tune",
         "Runs", "Models", "Help")  # fmt: skip


def large_scan() -> Any:
    """(300, 512, 512) int16: noise in a body-like ellipse, air around."""
    import numpy as np

    rng = np.random.default_rng(0)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in LARGE)
    body = (y[:, None] / 0.7) ** 2 + (x[None] / 0.9) ** 2 < 1
    plane = np.where(body, 40, -1000).astype(np.int16)
    noise = rng.integers(-40, 40, LARGE[1:]).astype(np.int16)
    scan = np.empty(LARGE, np.int16)
    for i in range(LARGE[0]):
        scan[i] = plane + np.roll(noise, 7 * i, axis=0) + np.int16(60 * z[i])
    return scan


def large_case(home: Path) -> Path:
    """The scan as a file, with an encoder and features of it made up beside it."""
    import numpy as np

    from homolog.features.files import FeatureCard, commit, feature_paths, new_array
    from homolog.geometry.affine import Affine
    from homolog.scans.files import scan_hash
    from homolog.scans.volume import Volume, closest_canonical
    from homolog.scans.write import write_volume

    affine, path = Affine.of(SPACING_MM), home / "large.nii"
    scan = large_scan()
    write_volume(Volume(scan[None], affine, "large", "CT"), path)
    second = Volume(scan[None, :60, 64:448, 64:448], affine, "second", "CT")
    write_volume(second, home / "second.nii")
    model = home / "runs" / "made" / "model"
    model.mkdir(parents=True)
    card = {
        "kind": "encoder", "method": "s2dc", "encoder_id": "0123456789abcdef",
        "backbone": {"name": "resunet", "config": {}}, "weights": "encoder.safetensors",
        "sha256": {}, "preprocessing": {"spacing_mm": [2.0, 2.0, 2.0]},
        "modalities": ["CT"],
    }  # fmt: skip
    (model / "model.json").write_text(json.dumps(card))
    spec = {"kind": "pretrain", "config": {}}
    (model.parent / "run.json").write_text(json.dumps(spec))
    rng, digest = np.random.default_rng(0), scan_hash(path)
    (home / "features").mkdir()
    array_path, _ = feature_paths(home / "features", "large", digest, "key")
    array, half = new_array(array_path, CELLS, FEATURES)
    for z in range(CELLS[0]):
        plane = rng.standard_normal((*CELLS[1:], FEATURES), dtype=np.float32)
        array[z] = plane / np.linalg.norm(plane, axis=-1, keepdims=True)
    stride = (4, 4, 4)
    turned = closest_canonical(Volume(np.zeros((1, *LARGE), np.int8), affine)).affine
    grid = turned.coarsen(stride)
    commit(array, half, array_path, FeatureCard(
        "key", digest, "0123456789abcdef", str(path), CELLS, FEATURES, stride,
        grid.to_list(), settings={"strides": [], "overlap": 0.5},
    ))  # fmt: skip
    return path


class Actions:
    """One window, and what single actions in it took.

    Args:
        profile: Print where long stretches went.
    """

    def __init__(self, *, profile: bool) -> None:
        from hand import Clock, Hand, Sampler

        self.sampler = Sampler(30) if profile else Sampler()
        clock = Clock(self.sampler)
        import napari

        self.viewer = napari.Viewer()
        clock.begin()
        self.viewer.window.resize(1440, 940)
        self.hand = Hand(self.viewer.window._qt_window, clock)
        self.hand.pause(1.5)
        self.told: dict[str, dict[str, float]] = {}

    def do(self, name: str, act: Any, until: Any = lambda: True, rest: float = 0.8):
        """Measure from the act until something holds, and a moment longer."""
        import gc

        gc.collect()
        self.hand.pause(0.3)
        self.hand.clock.clear()
        self.sampler.told.clear()
        act()
        found = self.hand.wait(until, 120, name)
        self.hand.pause(rest)
        busy = self.hand.clock.longest()
        self.told[name] = {
            "ours_ms": round(self.hand.clock.most_ours().ours, 1),
            "napari_ms": round(busy.napari, 1),
            "sum_ms": round(busy.own, 1),
            "drawing_ms": round(busy.drawing, 1),
        }
        print(f"{name:36s} {self.told[name]}", flush=True)
        if lines := self.sampler.lines(10):
            print("\n".join(lines), flush=True)
        return found

    def run(self, function: Any) -> None:
        """Call from the event loop, where it is timed."""
        from qtpy.QtCore import QTimer

        QTimer.singleShot(0, function)

    @property
    def canvas(self) -> Any:
        """napari's own."""
        from qtpy.QtWidgets import QWidget

        found = self.hand.window.centralWidget().findChildren(QWidget)
        shown = [w for w in found if type(w).__name__ == "CanvasBackendDesktop"]
        return max(shown, key=lambda w: w.width() * w.height())

    def turn(self, count: int = 12) -> list[float]:
        """Own work of slice changes, one after the other, ms."""
        found = []
        for _ in range(count):
            self.hand.clock.clear()
            place = self.viewer.dims.point[0] + SPACING_MM[0]
            self.run(lambda place=place: self.viewer.dims.set_point(0, place))
            self.hand.pause(0.25)
            found.append(self.hand.clock.longest().own)
        return found


def bare_actions(profile: bool) -> dict[str, Any]:
    """napari alone: the same arrays as an image, a label layer and points."""
    import numpy as np
    from napari.components import ViewerModel
    from napari.qt import QtViewer

    act = Actions(profile=profile)
    viewer, scan = act.viewer, large_scan()
    place = {"scale": SPACING_MM, "units": ("mm",) * 3}

    def image() -> None:
        viewer.add_image(scan, contrast_limits=(-160, 240), **place)

    def points() -> None:
        viewer.add_points([[150, 200, 200]], **place)

    def labels() -> None:
        for _ in range(2):
            viewer.add_labels(np.zeros(LARGE, np.uint8), **place)

    def beside() -> None:
        model = ViewerModel()
        viewer.window.add_dock_widget(QtViewer(model), area="right")
        model.add_image(scan[:60, 64:448, 64:448], **place)

    act.do("opened scan", lambda: act.run(image))
    turned = act.turn()
    act.do("first pin", lambda: act.run(points))
    act.do("label layers", lambda: act.run(labels))
    # Once its modules are imported, which ours does on a thread.
    act.do("image, again", lambda: act.run(image))
    act.do("points, again", lambda: act.run(points))
    act.do("label layers, again", lambda: act.run(labels))
    act.do("second view", lambda: act.run(beside), rest=2)
    return {**act.told, "slice change": _slices(turned)}


def _slices(turned: list[float]) -> dict[str, float]:
    return {"sum_ms": round(statistics.median(turned), 1),
            "sum_max_ms": round(max(turned), 1)}  # fmt: skip


def our_actions(home: Path, profile: bool) -> dict[str, Any]:
    """The same with the panel: scan, tabs, similarity, pins, paint."""
    from qtpy.QtCore import QPoint
    from qtpy.QtWidgets import QToolButton

    from homolog.gui.dock import MainPanel
    from homolog.gui.shared import preferences

    preferences.home = lambda: home  # type: ignore[assignment]
    path = home / "large.nii"
    act = Actions(profile=profile)
    hand, viewer = act.hand, act.viewer

    def docked() -> Any:
        return next(iter(hand.window.findChildren(MainPanel)), None)

    panel = act.do("open the plugin", lambda: hand.menu("Plugins", "Homolog"), docked)
    act.do("opened scan", lambda: hand.drop(panel.panels["Start"], [path]),
           lambda: "large" in [x.name for x in viewer.layers], 2)  # fmt: skip
    plain = act.turn()
    for title in _TABS:
        button = hand.find(QToolButton, f"Tab {title}")
        act.do(f"first opening of {title}", lambda b=button: hand.click(b), rest=1.5)
    act.do("engine described", lambda: None, lambda: panel.hub.schema, 2)
    for title in ("Start", *_TABS):
        button = hand.find(QToolButton, f"Tab {title}")
        act.do(f"switch to {title}", lambda b=button: hand.click(b), rest=1)
    hand.click(hand.find(QToolButton, "Tab Explore"))
    tab = panel.panels["Explore"]
    model = tab.models.model

    def row() -> int:
        return 1 + next(
            (i for i in range(model.count()) if "made" in model.itemText(i)), -1
        )

    chosen = hand.wait(row, 20, "the model") - 1
    ready = lambda: tab.explorer.control.ready()  # noqa: E731
    act.do("features found", lambda: hand.choose(model, model.itemText(chosen)), ready)
    middle = act.canvas.rect().center()
    act.do("first hover", lambda: hand.hover(act.canvas, middle))
    hovered = []
    for i in range(60):
        hand.clock.clear()
        hand.hover(act.canvas, middle + QPoint(3 * i - 90, i % 40))
        hand.pause(0.08)
        hovered.append(hand.clock.longest().own)
    hand.hover(act.canvas, middle)
    hand.pause(0.5)
    pins = tab.explorer.control.pins
    for i, name in enumerate(("first pin", "second pin")):
        at = middle + QPoint(60 * i, 0)
        act.do(name, lambda at=at: hand.click(act.canvas, at, shift=True),
               lambda n=i + 1: len(pins) == n, 2)  # fmt: skip
    with_heat = act.turn()
    hand.click(hand.find(QToolButton, "Tab Start"))
    hand.pause(1)
    act.do("label layers", lambda: hand.click(panel.panels["Start"].label),
           lambda: any("painted" in x.name for x in viewer.layers), 2)  # fmt: skip
    line = [middle + QPoint(5 * k, 0) for k in range(6)]
    act.do("first stroke", lambda: hand.stroke(act.canvas, line), rest=3)
    act.do("second stroke", lambda: hand.stroke(act.canvas, line), rest=3)
    with_paint = act.turn()
    act.do("second scan", lambda: hand.drop(act.canvas, [home / "second.nii"]),
           lambda: "second" in [x.name for x in viewer.layers], 2)  # fmt: skip
    hand.click(hand.find(QToolButton, "Tab Landmarks"))
    pair = panel.panels["Landmarks"]
    hand.pause(1)
    act.do("second view", lambda: act.run(pair.pair.open_view),
           lambda: pair.pair.view is not None, 3)  # fmt: skip
    assert "torch" not in sys.modules, "torch was imported in the window's process"
    cuts = statistics.quantiles(hovered, n=20)
    return {
        **act.told,
        "hover": {
            "sum_p95_ms": round(cuts[18], 1), "sum_max_ms": round(max(hovered), 1)
        },
        "slice change": _slices(plain),
        "slice change with similarity and pins": _slices(with_heat),
        "slice change with paint too": _slices(with_paint),
    }  # fmt: skip


def measure_actions(profile: bool) -> dict[str, Any]:
    """Both in processes of their own, our modules compiled as by an installation."""
    package = Path(find_spec("homolog").origin).parent
    compileall.compile_dir(package, quiet=1)
    found = {}
    for who in ("napari", "ours"):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            env = {**os.environ, "NAPARI_CONFIG": f"{scratch}/napari.yaml"}
            out = Path(scratch) / "told.json"
            if who == "ours":
                large_case(Path(scratch))  # here: its imports are not the window's
            command = [sys.executable, __file__, "--serve", who, "--out", str(out)]
            command += ["--profile"] if profile else []
            subprocess.run(command, env=env, check=True)
            found[who] = json.loads(out.read_text())
    worst = {k: v["ours_ms"] for k, v in found["ours"].items() if "ours_ms" in v}
    over = {k: v for k, v in worst.items() if v > _BAR_MS}
    found["ours_over_100_ms"] = over
    found["hover_met"] = found["ours"]["hover"]["sum_p95_ms"] <= _HOVER_BAR_MS
    found["load"] = round(os.getloadavg()[0], 1)
    return found


def serve(who: str, out: Path, profile: bool) -> None:
    """One of the two processes of ``measure_actions``."""
    if who == "napari":
        told = bare_actions(profile)
    else:
        told = our_actions(out.parent, profile)
    out.write_text(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actions", action="store_true", help="these alone")
    parser.add_argument("--profile", action="store_true", help="tell long stretches")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.out, options.profile)
    if options.actions:
        known = json.loads(options.out.read_text()) if options.out else {}
        result = {**known, "actions": measure_actions(options.profile)}
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")
        return
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
