"""The two pictures of the README, from phantom patients only: nobody's scan is in them.

Six phantoms are pretrained on with S2DC (400 steps, minutes), then a real napari window
is used: features of two patients the network has not seen are computed in the panel, a
place in the liver of one is pinned, and the training is shown.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/pictures.py [--steps 400]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE, SPACING_MM = (80, 100, 100), (3.5, 3.5, 3.5)
RESOURCES = Path(__file__).parents[1] / "resources"
SIZE_PX = (1360, 960)


def pretrain(home: Path, steps: int) -> Path:
    """S2DC on six phantoms, as the panel would start it; returns the run's folder."""
    from homolog.events import drain
    from homolog.phantom.phantom import write_cohort
    from homolog.runs import launch
    from homolog.runs.run import Run
    from homolog.store.build import prepare_store

    write_cohort(home / "scans", 6, seed=0, shape=SHAPE, spacing_mm=SPACING_MM)
    drain(prepare_store([home / "scans" / "imagesTr"], home / "stores" / "phantoms"))
    config = {
        "unresolved": True,
        "method": "s2dc",
        "stores": [str(home / "stores" / "phantoms")],
        "recipe": "cpu",
        "settings": {"training": {"steps": steps}},
    }
    run = Run.create(home / "runs" / "s2dc-phantoms-01", "pretrain", config)
    launch.start(run)
    for _ in launch.follow(run):
        pass
    if run.state() != "finished":
        raise RuntimeError(f"the pretraining ended as {run.state()}: {run.log}")
    return run.folder


def wait(condition: Callable[[], Any], seconds: float) -> None:
    """Let the window work until something holds."""
    from qtpy.QtWidgets import QApplication

    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError("waited in vain")
        QApplication.processEvents()
        time.sleep(0.01)


def settle(seconds: float = 2.0) -> None:
    """Let the window work for a while."""
    began = time.monotonic()
    wait(lambda: time.monotonic() - began > seconds, seconds + 60)


def save(viewer: Any, name: str) -> None:
    """The whole window as a PNG in resources/."""
    import imageio.v3 as iio

    path = RESOURCES / name
    iio.imwrite(path, viewer.screenshot(canvas_only=False, flash=False)[..., :3])
    print(path)


def explore(viewer: Any, panel: Any, run: Path) -> None:
    """Pin the liver of patient A and let patient B answer."""
    import numpy as np

    from homolog.gui.shared.layers import volume_layer
    from homolog.gui.shared.scan_layers import go_to
    from homolog.phantom.anatomy import LABEL_NAMES
    from homolog.phantom.phantom import make_phantom

    liver = next(value for value, name in LABEL_NAMES.items() if name == "liver")
    places = []
    for seed, name in ((101, "patient A"), (102, "patient B")):
        phantom = make_phantom(seed, shape=SHAPE, spacing_mm=SPACING_MM)
        data, attributes, _ = volume_layer(phantom.volume)
        viewer.add_image(data, **{**attributes, "name": name})
        cells = np.argwhere(phantom.labels.data == liver)
        middle = cells[np.abs(cells - cells.mean(0)).sum(1).argmin()]
        places.append(phantom.labels.affine.apply(middle))
    panel.visit("Explore", {"encoder": str(run)})
    tab = panel.panels["Explore"]
    control = tab.explorer.control

    def to_compute() -> bool:
        return bool(tab.hint.act.isVisible() and tab.hint.act.text() == "Compute all 2")

    wait(lambda: len(control.ready()) == 2 or to_compute(), 60)
    if to_compute():
        tab.hint.act.click()
    wait(lambda: len(control.ready()) == 2, 900)
    one, two = list(control.scans)
    tab.explorer.look_at(one, tuple(places[0]))
    settle()
    tab.explorer.moved(places[0])
    tab.explorer.hover()
    pin = tab.explorer.pin_here()
    control.pins.rename(pin.number, "liver")
    tab.explorer.pins_told()
    wait(lambda: pin.answers, 60)
    tab.explorer.look_at(two)
    settle()
    match = pin.answers[two]
    go_to(viewer, np.asarray(match.mm))
    viewer.scene.camera.zoom *= 0.72
    settle()
    save(viewer, "explore.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--home", type=Path, help="kept, and used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        home = (options.home or Path(scratch)).absolute()
        run = home / "runs" / "s2dc-phantoms-01"
        if not (run / "model").is_dir():
            run = pretrain(home, options.steps)

        import napari
        from qtpy.QtWidgets import QApplication

        from homolog.gui.shared import preferences
        from homolog.gui.window import dock_panel

        preferences.home = lambda: home  # type: ignore[assignment]
        viewer = napari.Viewer(title="Homolog")
        viewer.window.resize(*SIZE_PX)
        panel = dock_panel(viewer)
        settle()
        explore(viewer, panel, run)
        panel.visit("Runs", {"run": str(run)})
        settle(4)
        save(viewer, "training.png")
        viewer.close()
        QApplication.processEvents()


if __name__ == "__main__":
    main()
