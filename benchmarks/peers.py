"""Against TorchIO and nnU-Net, which live in an environment of their own.

They are no dependency: run this with the Python of an environment that has them and
what homolog needs; a row whose peer is not there is skipped with a sentence, and where
none is, nothing is written.

    python -m venv peers && peers/bin/pip install -e . torchio nnunetv2
    peers/bin/python benchmarks/peers.py [--rounds 5] [--out FILE]

- ``torchio``: affine and elastic change of image and label map, 96^3.
- ``nnunet_spatial``: the same by batchgeneratorsv2, what nnU-Net augments with.
- ``nnunet_feed``: crops of 96^3 with labels, a third centred on a label, read from
  two phantoms of 112 x 144 x 144 by nnU-Net's loader (blosc2) and by our feed;
  ``views``: what ours then takes on the CPU to place and normalise them (on a GPU: it).
- ``nnunet_sliding``: 105 classes, 64^3 in windows of 32^3: nnU-Net's predictor and
  ours, one network, one thread; and how many labels differ.

In turn, processor seconds of one thread, the least of the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from elastic import ANGLE_DEG, SCALE, SIZE, our_view
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.store.store import Store
from homolog.views.view import ViewSpec
from large_phantoms import make_store
from sliding_window import network_of, noise, ours

OUT = Path(__file__).resolve().parent / "results" / "peers.json"
STD = 4.0  # of displacements, in voxels
CROP, BATCH, BALANCE = (96, 96, 96), 2, 1 / 3


def in_turn(rounds: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Least processor seconds of each; a first round does not count."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if round_:
                took[name].append(time.process_time() - began)
    found = {f"{name}_s": min(times) for name, times in took.items()}
    peer = next(name for name in calls if name != "ours")
    return {**found, "times_faster": found[f"{peer}_s"] / found["ours_s"]}


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(0))
    return image, torch.arange(96**3).reshape(1, *SIZE) // 9999 % 5


def our_change() -> Callable[[], object]:
    make, numbers = our_view(*sample(), STD), iter(range(10**6))
    return lambda: make(next(numbers))


def with_torchio(rounds: int) -> dict[str, Any]:
    import torchio

    image, label = sample()
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=image),
        label=torchio.LabelMap(tensor=label.to(torch.int16)),
    )
    change = torchio.Compose(
        [
            torchio.RandomAffine(scales=SCALE, degrees=ANGLE_DEG),
            # its own spline of as many control points, not further than it may
            torchio.RandomElasticDeformation(
                num_control_points=12, max_displacement=STD, locked_borders=0
            ),
        ]
    )
    return in_turn(rounds, torchio=lambda: change(subject), ours=our_change())


def with_nnunet_spatial(rounds: int) -> dict[str, Any]:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    image, label = sample()
    turn = float(np.radians(ANGLE_DEG))
    change = SpatialTransform(
        SIZE, patch_center_dist_from_border=0, random_crop=False,
        p_elastic_deform=1, elastic_deform_scale=(0.05, 0.05),
        elastic_deform_magnitude=(0.05, 0.05), p_rotation=1, rotation=(-turn, turn),
        p_scaling=1, scaling=(1 - SCALE, 1 + SCALE), mode_seg="nearest",
    )  # fmt: skip
    given = {"image": image, "segmentation": label.to(torch.int16)}
    return in_turn(rounds, nnunet=lambda: change(**given), ours=our_change())


def nnunet_loader(folder: Path, cases: Sequence[CaseRef]) -> Any:
    """Its loader over the same scans, as its own preparation writes them."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    rng = np.random.default_rng(0)
    for case in cases:
        image = np.asarray(case.store.image(case.card.id)[:], np.float32) / 300
        stored = case.store.label(case.card.id)
        assert stored is not None
        label = np.asarray(stored[:], np.int16)[None]
        places = {}
        for value in case.card.label_values:
            found = np.argwhere(label == value)
            places[value] = rng.permutation(found)[:10000]
        blocks = comp_blosc2_params(image.shape, CROP)
        labels = comp_blosc2_params(label.shape, CROP, 2)
        nnUNetDatasetBlosc2.save_case(
            image, label, {"class_locations": places}, str(folder / case.card.id),
            chunks=blocks[1], blocks=blocks[0], chunks_seg=labels[1],
            blocks_seg=labels[0],
        )  # fmt: skip
    values = sorted({v for case in cases for v in case.card.label_values})
    names = {"background": 0, **{f"label {v}": v for v in values}}
    data = nnUNetDatasetBlosc2(str(folder))
    return nnUNetDataLoader(
        data, BATCH, CROP, CROP, LabelManager(names, None), BALANCE, None, None
    )


def with_nnunet_feed(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        store_at, theirs_at = Path(place) / "store", Path(place) / "nnunet"
        theirs_at.mkdir()
        make_store(store_at, 2, (112, 144, 144), factor=2, processes=1)
        store = Store.open(store_at)
        cases = [CaseRef(store, card) for card in store.cards]
        loader = nnunet_loader(theirs_at, cases)
        spec = ViewSpec(CROP, labels=True)
        feed = Feed(
            cases, {"crop": spec}, batch_size=BATCH, seed=0, balance=BALANCE, threads=0
        )
        steps = iter(range(10**6))

        def ours_read() -> None:
            for _ in range(8):
                feed.batch(next(steps))

        made = feed.batch(0)

        def views_made() -> None:
            for _ in range(8):
                feed.views(made, "cpu")

        def theirs_made() -> None:
            for _ in range(8):
                loader.generate_train_batch()

        row = in_turn(rounds, nnunet=theirs_made, ours=ours_read, views=views_made)
    crops = 8 * BATCH
    return row | {
        "crops_s_nnunet": crops / row["nnunet_s"], "crops_s_ours": crops / row["ours_s"]
    }  # fmt: skip


def with_nnunet_sliding(rounds: int) -> dict[str, Any]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    classes, size, window = 105, 64, 32
    network, image = network_of("split", classes), noise(size)
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False,
        perform_everything_on_device=False, device=torch.device("cpu"),
        verbose=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.network, predictor.allowed_mirroring_axes = network, None
    predictor.configuration_manager = SimpleNamespace(patch_size=(window,) * 3)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)

    def theirs() -> torch.Tensor:
        logits = torch.as_tensor(predictor.predict_sliding_window_return_logits(image))
        return logits.argmax(0)

    def mine() -> torch.Tensor:
        labels: torch.Tensor = ours(network, image, classes, window).labels
        return labels

    row = in_turn(rounds, nnunet=theirs, ours=mine)
    differ = (theirs() != mine().long()).double().mean()
    return {**row, "labels_that_differ": float(differ)}


ROWS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "torchio": ("torchio", with_torchio),
    "nnunet_spatial": ("batchgeneratorsv2", with_nnunet_spatial),
    "nnunet_feed": ("nnunetv2", with_nnunet_feed),
    "nnunet_sliding": ("nnunetv2", with_nnunet_sliding),
}


def is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def version(module: str) -> str:
    from importlib.metadata import version

    return version(module)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    if options.out.exists():  # others are made anew by themselves
        rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
    for name in options.only:
        module, measure = ROWS[name]
        if not is_there(module):
            print(
                f"{name}: skipped, {module} is not in this environment "
                f"({sys.executable}); see the top of benchmarks/peers.py."
            )
            continue
        rows[name] = {
            "peer": f"{module} {version(module)}", **measure(options.rounds),
            "rounds": options.rounds, "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        print(name, json.dumps(rows[name]), flush=True)
        content = {
            "what": "processor seconds of one thread, in turn, the least of the rounds",
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(), "rows": rows,
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
