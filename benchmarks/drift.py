"""How far a fine-tuning carries an encoder from what it had learnt, step by step.

Two figures of the encoder's maps, on crops of cases that are not learnt from where the
store has such, after 0, 1, 20, ... steps of fine-tuning, for schedules side by side:

- similarity: linear CKA of each map with the same map at the start (Kornblith et al.,
  ICML 2019): 1 where nothing was lost but a rotation, near 0 where nothing is left.
- matching: two views of a case, one turned, scaled and changed in brightness. Of the
  tokens (cells of a map) of the one view that have a partner in the other, the share
  whose most similar token there (cosine, means taken off) is that partner. Chance is
  one in the tokens to choose from; the same network with random weights is told too.

    python benchmarks/drift.py STORE --encoder RUN [--total 200] [--steps 0 1 20 100]
        [--patients 2] [--schedule "slow:encoder_factor=0.1,training.warmup=0"]
        [--set window=48,64,64] [--out benchmarks/results/drift.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.cli.train import sort_settings
from homolog.config import from_dict, merge
from homolog.events import drain
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.finetune.settings import FinetuneConfig, check_cases, resolve, task_of
from homolog.finetune.start import groups_of, sentences, starting_point
from homolog.training.config import TrainingConfig
from homolog.training.loop import train
from homolog.training.run_settings import backbone_card
from homolog.training.validation import evaluating
from homolog.views.view import Anchor, Intensity, Views, ViewSpec

CPU = torch.device("cpu")
MOST_TOKENS, MOST_CELLS = 2048, 8192
SCHEDULES = (
    "one rate for all:encoder_factor=1,head_first=0,average=0,training.warmup=0",
    "default:",
)


def as_before(kept: Tensor, now: Tensor) -> float:
    """Linear CKA of two sets of features (n, E), each row of one place."""
    a, b = (x.double() - x.double().mean(0) for x in (kept, now))
    across = (b.T @ a).square().sum()
    return float(across / ((a.T @ a).norm() * (b.T @ b).norm()).clamp_min(1e-30))


class Ruler:
    """The crops an encoder is measured on, always the same ones.

    Args:
        cases: To take them from.
        size: Of a crop (D, H, W).
        seed: Of places, turns and what of large maps is compared.
    """

    def __init__(self, cases: Sequence[CaseRef], size: Any, seed: int) -> None:
        changed = Intensity(
            shift_probability=0.8, scale_probability=0.8,
            noise_std=(0.0, 0.05), noise_probability=0.8,
        )  # fmt: skip
        turn = 15.0 if size[0] > 1 else 0.0
        plain = ViewSpec(size=size, place=Anchor())
        warped = ViewSpec(
            size=size, place=Anchor(), translate=(0.05, 0.1, 0.1),
            rotate_deg=(15.0, turn, turn), scale=(0.85, 1.15), intensity=changed,
        )  # fmt: skip
        feed = Feed(
            cases, {"plain": plain, "warped": warped}, batch_size=1, seed=seed,
            threads=0,
        )  # fmt: skip
        self.views: list[Views] = [
            feed.views(feed.batch(i), CPU) for i in range(len(cases))
        ]
        self.seed = seed

    def maps(self, encoder: Backbone, group: str) -> list[tuple[Tensor, ...]]:
        """Of each crop all maps (1, E, d, h, w)."""
        with evaluating(encoder), torch.no_grad():
            return [_maps(encoder, views[group].flat()) for views in self.views]

    def cells(self, encoder: Backbone) -> list[Tensor]:
        """Of each map its cells (n, E), of all crops together."""
        per_crop = self.maps(encoder, "plain")
        found = []
        for level in range(len(encoder.strides)):
            rows = torch.cat([m[level][0].flatten(1).T for m in per_crop])
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(len(rows), generator=generator)[:MOST_CELLS]
            found.append(rows[chosen].clone())
        return found

    def matching(self, encoder: Backbone) -> dict[str, dict[str, float]]:
        """Of each map with few enough tokens: ``accuracy`` and ``chance``."""
        plain, warped = self.maps(encoder, "plain"), self.maps(encoder, "warped")
        found = {}
        for level, stride in enumerate(encoder.strides):
            if plain[0][level][0, 0].numel() > MOST_TOKENS:
                continue
            right = asked = 0
            chance = 0.0
            for views, one, other in zip(self.views, plain, warped, strict=True):
                truth = views.token_matches("plain", "warped", stride)[0]
                a, b = (m[level][0].flatten(1).T for m in (one, other))
                mean = torch.cat([a, b]).mean(0)
                a, b = (torch.nn.functional.normalize(x - mean, dim=1) for x in (a, b))
                rows = truth.any(1)
                best = (a[rows] @ b.T).argmax(1)
                right += int(truth[rows].gather(1, best[:, None]).sum())
                asked += int(rows.sum())
                chance += float(rows.sum()) / len(b)
            name = "x".join(str(s) for s in dict.fromkeys(stride))
            found[f"{level}: stride {name}"] = {
                "accuracy": right / max(1, asked), "chance": chance / max(1, asked),
                "tokens": asked,
            }  # fmt: skip
        return found


def _maps(encoder: Backbone, image: Tensor) -> tuple[Tensor, ...]:
    """Maps of a crop; slices through a 2D network one by one, stacked again."""
    if encoder.spatial_dims == 3:
        return tuple(encoder(image))
    parts = [encoder.maps(image[:, :, z : z + 1]) for z in range(image.shape[2])]
    return tuple(torch.cat(level, 2) for level in zip(*parts, strict=True))


def measured(ruler: Ruler, encoder: Backbone, kept: Sequence[Tensor]) -> dict[str, Any]:
    """Both figures of an encoder as it is now."""
    cells = zip(kept, ruler.cells(encoder), strict=True)
    return {
        "similarity": [as_before(then, now) for then, now in cells],
        "matching": ruler.matching(encoder),
    }


def schedule(
    name: str, settings: FinetuneConfig, ruler: Ruler | None, arguments: Any
) -> tuple[dict[str, Any], Ruler]:
    """Fine-tune once; figures after each number of steps asked for."""
    cases, task = check_cases(settings), task_of(settings)
    start = starting_point(settings, cases)
    training = from_dict(TrainingConfig, settings.training)
    spec = task.describe(cases.all, start.backbone, CPU)
    module, start = start.module(task, spec, settings.seed)
    learnt = {case.card.id for case in cases.train}
    others = [case for case in cases.all if case.card.id not in learnt]
    if ruler is None:
        crops = (others or list(cases.all))[: arguments.cases]
        ruler = Ruler(crops, tuple(spec["window"]), settings.seed)
    encoder, kept = module.encoder(), ruler.cells(module.encoder())
    rows = {0: measured(ruler, encoder, kept)}

    def look(done: int) -> Mapping[str, float]:
        if done in arguments.steps:
            rows[done] = measured(ruler, encoder, kept)
        return {}

    feed = Feed(
        cases.train, module.views(), batch_size=training.batch_size,
        seed=settings.seed, balance=task.balance, threads=1, device=CPU,
        targets=task.targets(cases.train, spec),
    )  # fmt: skip
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        drain(
            train(
                module, feed, training, folder=Path(folder), device=CPU,
                seed=settings.seed, validate=look,
                parameter_groups=groups_of(module, task.config, training, start.taken),
            )
        )  # fmt: skip
    torch.manual_seed(settings.seed + 1)
    card = backbone_card(encoder)
    unlearnt = build(card["name"], card["config"])
    said = sentences(module, task.config, training, start.taken)
    return {
        "schedule": name, "settings": said, "patients": settings.patients,
        "processor_s": round(time.process_time() - began, 1), "rows": rows,
        "random_weights": ruler.matching(unlearnt),
    }, ruler  # fmt: skip


def settings_of(text: str, arguments: Any) -> tuple[str, FinetuneConfig]:
    """``name:key=value,...`` -> the name, and the settings of that fine-tuning."""
    name, _, assignments = text.partition(":")
    own, training, network = sort_settings(
        (*arguments.set, *(part for part in assignments.split(",") if part))
    )
    length = {
        "steps": arguments.total, "minutes": 0.0, "validate_every": 1,
        "dry_run_steps": 0, "previews": 0, "log_every": arguments.total,
    }  # fmt: skip
    request = {
        "store": str(arguments.store), "encoder": str(arguments.encoder),
        "recipe": "cpu", "patients": arguments.patients, "seed": arguments.seed,
        "threads": arguments.threads, "task_config": own, "device": "cpu",
        "training": merge(training, length), "backbone": network,
    }  # fmt: skip
    return name, resolve(request)


def printed(result: Mapping[str, Any], strides: Sequence[str]) -> None:
    print(f"\n{result['schedule']} ({result['processor_s']} s of processor time)")
    for sentence in result["settings"]:
        print(f"  {sentence}")
    matched = list(result["random_weights"])
    print(f"{'steps':>7}" + "".join(f"{s:>9}" for s in strides)
          + "".join(f"{'match ' + m.split()[-1]:>11}" for m in matched))  # fmt: skip
    for done, row in result["rows"].items():
        print(f"{done:>7}" + "".join(f"{s:>9.3f}" for s in row["similarity"])
              + "".join(f"{row['matching'][m]['accuracy']:>11.3f}"
                        for m in matched))  # fmt: skip
    for what, values in (("random", "accuracy"), ("chance", "chance")):
        print(f"{what:>7}" + " " * 9 * len(strides)
              + "".join(f"{result['random_weights'][m][values]:>11.3f}"
                        for m in matched))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--total", type=int, default=200, help="steps of a training")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 20, 100, 200])
    parser.add_argument("--patients", type=int, default=0)
    parser.add_argument("--cases", type=int, default=8, help="crops to measure on")
    parser.add_argument("--schedule", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: list[dict[str, Any]] = []
    ruler = None
    for text in given.schedule or SCHEDULES:
        name, settings = settings_of(text, given)
        result, ruler = schedule(name, settings, ruler, given)
        results.append(result)
        count = len(next(iter(result["rows"].values()))["similarity"])
        printed(result, [f"CKA {i}" for i in range(count)])
        if given.out is not None:
            told = {
                "store": given.store.name, "encoder": given.encoder.name,
                "total": given.total, "seed": given.seed, "set": given.set,
                "cases": given.cases, "schedules": results,
            }  # fmt: skip
            given.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
