"""Steps and predictions on a pretended GPU: what is made, and what it tells.

A recipe's own network with all of its layers, but narrow; its own settings on small
crops. What a step asks of a GPU does not depend on widths, so the kernels counted here
are those of the recipe.

    python tests/simulated_gpu.py [KEY...] [--places N] [--record] [--out FILE]

prints a table, the N places that send most kernels, and records the numbers that
``test_simulated_gpu.py`` holds against.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fake_cuda import CUDA, Report, fake_cuda
from homolog.backbones import BACKBONES, build
from homolog.config import from_dict
from homolog.events import drain
from homolog.feed.batches import Feed, StoredScan
from homolog.feed.partners import random_partners
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.methods import METHODS
from homolog.nn.optim import parameter_groups
from homolog.tasks import TASKS
from homolog.tasks.base import PredictOptions, Trained
from homolog.tasks.classify.answer import answer
from homolog.tasks.detect.answer import find_boxes
from homolog.tasks.segment.network import label_stored
from homolog.tasks.translate.task import translated
from homolog.training.config import TrainingConfig
from homolog.training.course import Course
from homolog.training.stepping import Stepper
from memory_store import MemoryStore

RECORD = Path(__file__).with_suffix(".json")
SIDE = 32
BATCH = 2
# Widths of the paper's order are no matter: nothing may depend on them.
NARROW: Mapping[str, Mapping[str, Any]] = {
    "resunet": {"channels": 8},
    "resnet": {"widths": 8},
    "resnet2d": {"widths": 8},
    "densenet": {"initial": 8, "growth": 4},
    "hybrid": {"widths": 8, "dim": 16, "inner": 16, "heads": 2, "groups": 2},
    "swin": {"feature_size": 8, "heads": [1, 2, 4, 8], "window": [4, 4, 4]},
    "nnformer": {"feature_size": 8, "heads": [1, 2, 4, 8], "windows": [4, 4, 4, 4]},
    "vit": {"hidden": 24, "inner": 24, "heads": 2},
}
MOST = {
    "head_hidden": 16, "head_bottleneck": 16, "head_dim": 16, "alignment_dim": 16,
    "hidden": 16, "dim": 16, "width": 16, "decoder_width": 24, "prototypes": 16,
    "prototypes_volumes": 16, "queue_length": 32, "queue_volumes": 16,
    "identity_voxels": 256, "most_voxels": 128, "hardest": 256, "negatives": 64,
    "coarse_hardest": 64, "coarse_negatives": 32, "global_negatives": 32,
}  # fmt: skip


@cache
def cases() -> tuple[CaseRef, ...]:
    """Four small noisy patients with two organs, a box and a class each."""
    store: Any = MemoryStore()
    store.hash, store.label_names = "memory", {1: "liver", 2: "spleen"}
    grid = Affine.of((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    found = []
    for number in range(4):
        rng = np.random.default_rng(number)
        image = rng.normal(0, 60, (1, 40, 44, 44))
        label = np.zeros(image.shape[1:], np.int16)
        label[8:24, 10:26, 8:24], label[20:34, 24:38, 22:36] = 1, 2
        image[0, label == 1] += 200
        case = store.add(image, grid, label)
        box = {"label": "liver", "min": [8, 10, 8], "max": [24, 26, 24]}
        kept = {"target": "ab"[number % 2], "boxes": (box,)}
        kept["modality"] = ("CT", "MR")[number % 2]
        found.append(CaseRef(store, dataclasses.replace(case.card, **kept)))
    return tuple(found)


def narrow(network: Mapping[str, Any], side: int = SIDE) -> dict[str, Any]:
    """A network of a recipe with all its layers and few channels."""
    name = network["name"]
    config = BACKBONES.get(name).Config
    whole = {f.name: f.default for f in dataclasses.fields(config)} | dict(network)
    made = dict(network)
    for key, value in NARROW[name].items():
        if key in ("channels", "widths"):
            value = [value] * len(whole[key])
        if key != "groups" or whole.get(key, 1) > 1:
            made[key] = value
    if name == "vit":
        made["image_size"] = [side] * 3
    return made


def _small(settings: Mapping[str, Any], config: type) -> dict[str, Any]:
    """Settings of a recipe with small crops and narrow heads."""
    known = {f.name: f.default for f in dataclasses.fields(config)}
    made = known | dict(settings)
    for key, most in MOST.items():
        if isinstance(made.get(key), int):
            made[key] = min(made[key], most)
    flat = made.get("size", (0,))[0] == 1
    for key, side in (("size", SIDE), ("slice_size", SIDE), ("small_size", SIDE // 2)):
        if key in made:
            thin = flat or (made[key][0] == 1 and "size" in made)
            made[key] = [1 if thin else side, side, side]
    if "slice_size" in made:  # both slices and volumes
        made["size"] = [16, SIDE, SIDE]
    return {k: v for k, v in made.items() if k in settings or v != known[k]}


@dataclass
class Made:
    """What steps are made of.

    Attributes:
        stepper: Of a module.
        feed: Of its batches.
        phases: Stretches of its training in which it computes other things.
    """

    stepper: Stepper
    feed: Feed
    phases: int


def _stepper(module: nn.Module, device: torch.device, **training: Any) -> Stepper:
    module.to(device).train()
    numbers = "fp32" if device.type == "cpu" else "bf16"
    return Stepper(
        module, TrainingConfig(steps=8, **training), parameter_groups(module, 0.01),
        device=device, seed=0, precision=numbers,
    )  # fmt: skip


def method_made(name: str, recipe: str, device: torch.device) -> Made:
    """A method on a recipe's network, ready to step."""
    cls = METHODS.get(name)
    told = cls.RECIPES[recipe]
    network = narrow(told["backbone"])
    own = _small(told.get("method", {}), cls.Config)
    known = {f.name: f.default for f in dataclasses.fields(cls.Config)}
    own = cls.settled(known | own, cases())
    torch.manual_seed(0)
    backbone = build(network.pop("name"), network)
    method = cls(backbone, from_dict(cls.Config, own))
    wanted = method.pairs_wanted()
    turns = method.turns()
    feed = Feed(
        cases(), method.views(), batch_size=BATCH, seed=0, threads=0, device=device,
        partners=random_partners(cases(), 0) if wanted else None,
        turns=[turns.index(c.card.modality) for c in cases()] if turns else None,
        targets=method.targets(cases()), phases=method.phases(),
    )  # fmt: skip
    training = told.get("training", {})
    chosen = {k: training[k] for k in ("optimizer",) if k in training}
    stepper = _stepper(method, device, **chosen)
    return Made(stepper, feed, max(1, len(method.phases())))


def task_made(
    name: str, network: Mapping[str, Any], settings: Mapping[str, Any],
    device: torch.device,
) -> Made:  # fmt: skip
    """A task on a network, ready to step."""
    cls = TASKS.get(name)
    task: Any = cls(from_dict(cls.Config, {"window": [SIDE] * 3, **settings}))
    made = narrow(network)
    torch.manual_seed(0)
    backbone = build(made.pop("name"), made)
    spec = task.describe(cases(), backbone, device)
    module = task.module(task.network(backbone, spec), spec)
    feed = Feed(
        cases(), module.views(), batch_size=BATCH, seed=0, balance=task.balance,
        targets=task.targets(cases(), spec), threads=0, device=device,
    )  # fmt: skip
    return Made(_stepper(module, device), feed, 1)


def method_keys() -> list[str]:
    """``METHOD/NETWORK/RECIPE``: the recipes cpu and gpu, others of other networks."""
    found: dict[tuple[str, str], str] = {}
    for name in METHODS.names():
        recipes = METHODS.get(name).RECIPES
        for recipe in sorted(recipes, key=("paper", "cpu", "gpu").count, reverse=True):
            found.setdefault((name, recipes[recipe]["backbone"]["name"]), recipe)
        found[name, f"{recipes['gpu']['backbone']['name']}"] = "gpu"
    return [f"{name}/{net}/{recipe}" for (name, net), recipe in found.items()]


SLICE = {"window": [1, SIDE, SIDE]}
V2 = {"name": "swin", "use_v2": True}
# Key -> network, settings.
TASK_CASES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "segment/resunet": ({"name": "resunet"}, {"elastic_mm": 1.0}),
    "segment/swin": (V2, {}),
    "segment/vit": ({"name": "vit"}, {}),
    "segment/nnformer": (
        {"name": "nnformer", "decoder": "nnformer"}, {"deep_supervision": True}
    ),
    "segment/resnet2d": ({"name": "resnet2d"}, SLICE),
    "classify/resnet2d": ({"name": "resnet2d"}, {}),
    "classify/hybrid": ({"name": "hybrid", "groups": 8}, {"hidden": 16}),
    "classify/densenet": ({"name": "densenet"}, {"pooling": "mean_and_max"}),
    "detect/resunet": ({"name": "resunet"}, {"width": 8}),
    "detect/points": ({"name": "resunet"}, {"width": 8, "detector": "points"}),
    "translate/resunet": ({"name": "resunet"}, {"dose": 4.0, "ssim": 0.5}),
    "translate/swin": ({"name": "swin"}, {"dose": 4.0}),
}  # fmt: skip


def made(key: str, device: torch.device) -> Made:
    """What a key stands for, on a device."""
    if key in TASK_CASES:
        return task_made(key.split("/")[0], *TASK_CASES[key], device)
    name, _, recipe = key.split("/")
    return method_made(name, recipe, device)


def keys() -> list[str]:
    """All methods and tasks."""
    return [*method_keys(), *TASK_CASES]


# Key -> network, settings; a scan predicted, twice: small and twice as long each way.
PREDICT_CASES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "predict/segment/resunet": TASK_CASES["segment/resunet"],
    "predict/segment/swin": TASK_CASES["segment/swin"],
    "predict/segment/resnet2d": TASK_CASES["segment/resnet2d"],
    "predict/classify/densenet": TASK_CASES["classify/densenet"],
    "predict/classify/resnet2d": TASK_CASES["classify/resnet2d"],
    "predict/detect/resunet": TASK_CASES["detect/resunet"],
    "predict/detect/points": TASK_CASES["detect/points"],
    "predict/translate/resunet": TASK_CASES["translate/resunet"],
}


def predictor(key: str, device: torch.device) -> Callable[[int], Any]:
    """What predicts a scan of a task's first case, so many times as long each way."""
    _, name, _ = key.split("/")
    network, settings = PREDICT_CASES[key]
    cls = TASKS.get(name)
    task: Any = cls(from_dict(cls.Config, {"window": [SIDE] * 3, **settings}))
    told = narrow(network)
    torch.manual_seed(0)
    backbone = build(told.pop("name"), told)
    spec = task.describe(cases(), backbone, device)
    whole = task.network(backbone, spec).to(device).eval().requires_grad_(False)
    numbers = "fp32" if device.type == "cpu" else "bf16"
    model = Trained(whole, spec, {}, device, numbers)
    case = cases()[0]
    levels = case.card

    def run(times: int) -> Any:
        data = np.tile(np.asarray(case.store.image(case.card.id)[:]), (1, *[times] * 3))
        scan = StoredScan(data, levels.affine, levels.levels)
        if name == "segment":
            return drain(label_stored(model, data, levels, windows="trained"))
        if name == "translate":
            return drain(translated(model, data, levels.levels, windows="trained"))
        if name == "detect":
            options = PredictOptions(windows="trained", least_score=0.0)
            return drain(find_boxes(model, scan, options))
        return answer(model, scan)

    return run


def told_of_prediction(
    key: str, places: bool = False
) -> tuple[list[Report], list[int]]:
    """What a scan and a larger one tell, and the kernels of each."""
    found, kernels = [], []
    with fake_cuda() as told:
        run = predictor(key, CUDA)
        run(1)
        for times in (1, 2):
            told.clear()
            told.places = Counter() if places else None
            run(times)
            kernels.append(told.kernels)
            found.append(copy.deepcopy(told))
    return found, kernels


def told_of(key: str, places: bool = False) -> tuple[Report, list[int]]:
    """What the second step of each phase tells, and the kernels of each."""
    whole, kernels = Report(), []
    with fake_cuda() as told:
        ready = made(key, CUDA)
        for phase in range(ready.phases):
            share = (phase + 0.5) / ready.phases
            batches: Iterator[Any] = ready.feed.stream(0, 2, lambda _, s=share: s)
            course = Course(2 * ready.phases)
            ready.stepper.step(2 * phase, course, ready.feed, batches, 1)
            told.clear()  # constants went up
            told.places = Counter() if places else None
            ready.stepper.step(2 * phase + 1, course, ready.feed, batches, 1)
            kernels.append(told.kernels)
            for field in ("waits", "uploads", "by_op"):
                getattr(whole, field).update(getattr(told, field))
            if told.places:
                whole.places = (whole.places or Counter()) + told.places
            whole.copies += told.copies
        whole.mixed.update(told.mixed)
        whole.kernels = sum(kernels)
    return whole, kernels


def blocking(told: Report) -> dict[str, int]:
    """Uploads that the host waits for: small ones go through the driver's own buffer.

    A copy of at most 64 KiB that is not pinned returns at once, a larger one does not
    (CUDA runtime, "API synchronization behavior").
    """
    return {
        place: count
        for place, count in told.uploads.items()
        if "not pinned" not in place or "KiB" in place
    }


def recorded() -> dict[str, list[int]]:
    """Key -> kernels of a step in each phase, as the repository has them."""
    found: dict[str, list[int]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keys", nargs="*")
    parser.add_argument("--places", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--out", type=Path, help="the table as JSON")
    options = parser.parse_args(words)
    found = recorded() if RECORD.exists() else {}
    every = [*keys(), *PREDICT_CASES]
    wanted = [k for k in every if not options.keys or k.startswith(tuple(options.keys))]
    rows: dict[str, dict[str, int]] = {}
    for key in wanted:
        began = time.process_time()
        if key in PREDICT_CASES:
            (_, told), kernels = told_of_prediction(key, options.places > 0)
        else:
            told, kernels = told_of(key, options.places > 0)
        print(
            f"{key:36} mixed {sum(told.mixed.values())} waits "
            f"{sum(told.waits.values())} uploads {sum(blocking(told).values())} copies "
            f"{told.copies} kernels {kernels} ({time.process_time() - began:.1f} s)",
            flush=True,
        )
        for what in (told.mixed, told.waits, blocking(told)):
            for place, count in what.items():
                print(f"    {count:4} {place}")
        for place, count in (told.places or Counter()).most_common(options.places):
            print(f"    {count:6} {place}")
        found[key] = kernels
        rows[key] = {
            "mixed": sum(told.mixed.values()), "waits": sum(told.waits.values()),
            "uploads": sum(blocking(told).values()),
            "kernels": kernels[-1] if key in PREDICT_CASES else sum(kernels),
        }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.record:
        found = {key: found[key] for key in every}
        rows = [f'  "{key}": {json.dumps(value)}' for key, value in found.items()]
        RECORD.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
