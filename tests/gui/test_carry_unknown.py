"""What is unknown in a prediction is not carried to other scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from explore_files import write_scan
from napari.components import ViewerModel

from homolog.geometry.affine import Affine
from homolog.gui.files.reader import read_layers
from homolog.gui.label import layers as own
from homolog.gui.label.carry_box import Wanted, carry_config
from homolog.scans.files import read_labels
from homolog.scans.names import names_beside
from homolog.tasks.few_voxels.scan import few_classes


def test_unknown_is_not_carried(tmp_path: Path) -> None:
    viewer, scans = ViewerModel(), []
    for name in ("a", "b"):
        path = write_scan(tmp_path, name, Affine.scale([2.0, 2.0, 2.0]))
        ((data, attributes, _),) = read_layers(str(path))
        scans.append(viewer.add_image(data, **attributes))
    painted = own.add_painted(viewer, scans[0])
    shown = own.add_predicted(viewer, scans[0], painted)
    own.show_classes(shown, few_classes([1], {1: "liver"}))
    shown.data[2:5] = 1
    shown.data[6:9] = 254
    assert shown.metadata["label_names"][254] == "unknown"
    assert 254 not in painted.metadata.get("label_names", {})
    wanted = Wanted(scans[0], shown, (scans[1],))
    config = carry_config(wanted, None, tmp_path / "features", "cpu", tmp_path / "s")
    (labels,) = config["labels"]
    assert np.unique(read_labels(Path(labels)).data).tolist() == [0, 1]
    assert names_beside(Path(labels)) == {1: "liver"}
