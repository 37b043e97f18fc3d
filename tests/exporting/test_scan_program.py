"""The program that goes with exported models prepares and labels scans as we do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homolog.events import drain
from homolog.exporting.portable import PROGRAMS, program
from homolog.geometry.affine import Affine
from homolog.scans.volume import CHANNELS, Volume
from homolog.sliding.sliding import slide
from homolog.sliding.windows import SlidingConfig
from homolog.store.learnt_spacing import Learnt, LearntSpacing
from homolog.store.preprocess import (
    SCALINGS,
    Preprocessing,
    prepare_volume,
    restore_labels,
)
from homolog.tasks.segment.network import Normalise

scans = program(PROGRAMS)
SHAPE = (9, 14, 12)


def volume(affine: Affine, kind: str = "float", channels: int = 1) -> Volume:
    """Something with a body in air."""
    random = np.random.default_rng(3)
    data = random.normal(0, 30, (channels, *SHAPE))
    data[:, 2:7, 3:11, 2:10] += 400 + 100 * random.random((5, 8, 8))
    values = data.astype(np.float32) if kind == "float" else data.round()
    if kind == "int16":
        values = values.astype(np.int16)
    if kind == "uint16":
        values = (values - values.min() + 40_000).clip(0, 65_535).astype(np.uint16)
    return Volume(values, affine, "scan", "MR")


def turned(order: tuple[int, int, int], signs: tuple[int, int, int]) -> Affine:
    """Axes permuted, flipped and tilted a little."""
    direction = np.zeros((3, 3))
    for axis, world in enumerate(order):
        direction[world, axis] = signs[axis]
    angle = 0.2
    tilt = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0],
            [np.sin(angle), np.cos(angle), 0],
            [0, 0, 1],
        ]
    )
    return Affine.of((3.0, 1.0, 1.5), (5.0, -7.0, 11.0), tilt @ direction)


def recipe(how: Preprocessing, learnt: Learnt | None, **more: Any) -> dict[str, Any]:
    """As scan_recipe writes it, as far as preparation reads it."""
    spacing = learnt and learnt.spacing
    told = {
        "spacing_mm": how.spacing_mm,
        "window_hu": how.window_hu,
        "percentiles": how.percentiles,
        "axes": how.axes,
        "fill_nan": how.fill_nan,
        "scaling": how.scaling,
        "dataset_hu": how.dataset_hu,
    }
    return {
        "channels": 1,
        "modality": how.modality,
        "preprocessing": told,
        "learnt_spacing_mm": spacing and spacing.to_dict(),
        **more,
    }


LEARNT = Learnt(LearntSpacing((4.0, 2.0, 2.0), (5.0, 2.0, 2.0)))
CASES = [
    (turned((0, 1, 2), (1, 1, 1)), Preprocessing(modality="MR"), None, "float"),
    (turned((2, 0, 1), (-1, 1, -1)), Preprocessing(modality="CT"), None, "int16"),
    (turned((1, 2, 0), (1, -1, 1)), Preprocessing(modality="MR"), LEARNT, "int16"),
    (turned((0, 2, 1), (-1, -1, 1)), Preprocessing(modality="PET"), LEARNT, "float"),
    (
        turned((2, 1, 0), (1, 1, -1)),
        Preprocessing(spacing_mm=(2.0, 2.0, 1.2), modality="CT"),
        None,
        "uint16",
    ),
    (
        turned((2, 1, 0), (1, 1, -1)),
        Preprocessing(modality="MR", axes="acquired"),
        LEARNT,
        "whole",
    ),
    *(
        (
            turned((0, 1, 2), (1, 1, 1)),
            Preprocessing(modality=kind, scaling=way, dataset_hu=(80.0, 120.0)),
            None,
            "float",
        )
        for way in SCALINGS
        for kind in ("CT", "MR")
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_scan_is_prepared_and_its_labels_restored_as_by_us(case: int) -> None:
    affine, how, learnt, kind = CASES[case]
    scan = volume(affine, kind)
    own = prepare_volume(scan, how, learnt)
    found = scans.prepare(scan.data, affine.matrix, recipe(how, learnt))
    assert found.image.shape == own.data.shape
    stored = torch.from_numpy(own.data)[None]
    seen = Normalise(own.levels, torch.device("cpu"))(stored)[0].numpy()
    step = abs(own.levels[0].gain)  # a rounding to int16 may fall to the other side
    assert np.abs(found.image - seen).max() <= step * 1.01
    assert (np.abs(found.image - seen) > 1e-5).mean() < 2e-3
    assert np.allclose(found.grid.affine, own.affine.matrix, atol=1e-9)
    filled = Normalise(own.levels, torch.device("cpu"))(
        torch.tensor([[[[[float(own.levels[0].fill)]]]]])
    )
    assert found.outside[0] == pytest.approx(float(filled), abs=1e-6)
    classes = np.random.default_rng(0).integers(0, 3, own.data.shape[1:])
    told = {"label_values": [0, 2, 5]}
    labels = np.asarray([0, 2, 5])[classes]
    back = scans.restore(classes, found.grid, told)
    assert np.array_equal(back, restore_labels(labels, own, scan).data)


def test_channels_have_numbers_of_their_own() -> None:
    scan = volume(Affine.of((3.0, 1.0, 1.5)), "float", channels=3)
    scan.data[2] = scan.data[0] > 200
    kinds = [("CT", "CT"), ("T2", "MR"), ("mask", "OTHER")]
    meta = {CHANNELS: [{"name": n, "modality": m} for n, m in kinds]}
    scan = Volume(scan.data, scan.affine, scan.name, scan.modality, meta)
    own = prepare_volume(scan, Preprocessing())
    told = recipe(
        Preprocessing(), None, channels=3, masks=[False, False, True],
        channel_modalities=[m for _, m in kinds],
    )  # fmt: skip
    found = scans.prepare(scan.data, scan.affine.matrix, told)
    assert np.allclose(found.image, own.normalised(), atol=1e-5)


def test_what_cannot_be_used_is_told() -> None:
    scan = volume(Affine.of((3.0, 1.0, 1.5)))
    told = recipe(Preprocessing(modality="MR"), None)
    with pytest.raises(ValueError, match="takes 2 channels, got 1"):
        scans.prepare(scan.data, np.eye(4), {**told, "channels": 2})
    several = {**told, "modality": None, "modalities": ["CT", "MR"]}
    odd = {**told["preprocessing"], "scaling": "of tomorrow"}
    with pytest.raises(ValueError, match="older than the model"):
        scans.prepare(scan.data, np.eye(4), {**told, "preprocessing": odd})
    with pytest.raises(ValueError, match="CT, MR"):
        scans.prepare(scan.data, np.eye(4), several)
    scan.data[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        scans.prepare(scan.data, np.eye(4), told)
    fine = LearntSpacing((0.1, 0.1, 0.1), (0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="cannot be seen"):
        scans.plan(np.eye(4), SHAPE, recipe(Preprocessing(), Learnt(fine)))


def test_affines_of_nibabel_and_back() -> None:
    own = turned((1, 2, 0), (1, -1, 1)).matrix
    assert np.allclose(scans.lps(scans.ras(own)), own)
    plain = scans.lps(np.diag([2.0, 3.0, 4.0, 1.0]))  # x to the right, y to the front
    assert np.allclose(np.diag(plain), [4.0, -3.0, -2.0, 1.0])


@pytest.mark.parametrize(
    ("shape", "follow", "slicewise"),
    [
        ((20, 20, 20), None, False),
        ((5, 9, 21), None, False),
        ((21, 18, 30), (2, 2, 2), False),
        ((11, 20, 18), None, True),
    ],
)
def test_windows_are_blended_as_by_us(
    shape: tuple[int, int, int], follow: Any, slicewise: bool
) -> None:
    torch.manual_seed(0)
    kernel = (1, 3, 3) if slicewise else (3, 3, 3)
    reach = (0, 1, 1) if slicewise else (1, 1, 1)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 6, kernel, padding=reach), torch.nn.GELU(),
        torch.nn.Conv3d(6, 3, kernel, padding=reach),
    ).eval()  # fmt: skip
    image = torch.randn(1, *shape)
    window = (shape[0], 12, 12) if slicewise else (12, 12, 12)
    config = SlidingConfig(
        window, (4, 4, 4) if not slicewise else (1, 4, 4), (8, 8, 8), 0.5,
        slicewise=slicewise, fill=-1.0, follow=follow,
    )  # fmt: skip
    own = drain(
        slide(network, image, classes=3, config=config, device=torch.device("cpu"))
    )
    assert own is not None
    told = {
        "window": list(window), "sides": "any", "divisor": list(config.divisor),
        "smallest": [8, 8, 8], "overlap": 0.5, "slicewise": slicewise,
        "follow": follow, "label_values": [0, 1, 2],
    }  # fmt: skip
    grid = scans.Grid((0, 1, 2), (False,) * 3, shape, shape)
    prepared = scans.Prepared(image.numpy(), [-1.0], grid)
    with torch.no_grad():
        found = scans.label(
            prepared, lambda x: network(torch.from_numpy(x)).numpy(), told
        )
    assert (found == own.labels.numpy()).mean() > 0.999


def test_monais_windows_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices, a scan smaller than the window and one a little larger."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    for name in ("homolog_scan", "homolog_monai"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monai_part = program(PROGRAMS, "homolog_monai.py")
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, (1, 3, 3), padding=(0, 1, 1)).eval()
    plain = {
        "sides": "any", "smallest": [4, 8, 8], "overlap": 0.5,
        "label_values": [0, 1, 2], "window": [8, 12, 12], "divisor": [2, 4, 4],
    }  # fmt: skip
    for number, (shape, more) in enumerate(
        (
            ((9, 20, 17), {"slicewise": True, "follow": None, "divisor": [1, 4, 4]}),
            ((5, 7, 11), {"slicewise": False, "follow": None}),
            ((9, 13, 30), {"slicewise": False, "follow": [2, 2, 2]}),
        )
    ):
        told = {**plain, **more}
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(told), encoding="utf-8")
        image = torch.randn(1, *shape)
        grid = scans.Grid((0, 1, 2), (False,) * 3, shape, shape)
        outside = float(image.min())
        with torch.no_grad():
            own = scans.label(
                scans.Prepared(image.numpy(), [outside], grid),
                lambda x: network(torch.from_numpy(x)).numpy(),
                told,
            )
            found = monai_part.FollowingInferer(recipe=str(path))(image[None], network)
        assert (found[0].argmax(0).numpy() == own).mean() > 0.999


def test_it_is_one_file_that_numpy_alone_runs() -> None:
    text = (PROGRAMS / "homolog_scan.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    rooms = {line.split()[1].split(".")[0] for line in lines}
    plain = {"__future__", "itertools", "json", "math", "dataclasses", "pathlib"}
    assert rooms <= plain | {"typing", "numpy"}
    assert Path(PROGRAMS / "label_scan.py").is_file()
