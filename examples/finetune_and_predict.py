"""Learn a segmentation from labelled patients, label new ones, and score the result.

    python examples/finetune_and_predict.py OUT [ENCODER]

ENCODER is a pretraining run (``homolog pretrain``) or a weight file; without one a
small network starts from random weights. A hundred steps teach the largest organs only;
on real labels leave the recipe as it is and give minutes, ``{"minutes": 20}``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from homolog.events import drain
from homolog.finetune.job import job as finetune
from homolog.finetune.settings import resolve_request
from homolog.phantom.phantom import write_cohort
from homolog.store.build import prepare_store
from homolog.store.preprocess import Preprocessing
from homolog.use.evaluate import evaluate_folder
from homolog.use.predict import open_predictor, predict_scans


def main(out: Path, encoder: str = "scratch", steps: int = 100) -> float:
    """Returns the liver's Dice, mean of the test patients."""
    scans = out / "scans"
    write_cohort(scans, 7, test=2, shape=(40, 48, 48), spacing_mm=(8.0, 8.0, 8.0))
    soft_tissue = Preprocessing(window_hu=(-250.0, 350.0))
    drain(prepare_store([scans], out / "store", preprocessing=soft_tissue))

    request = {
        "task": "segment",
        "store": str(out / "store"),
        "encoder": encoder,
        "training": {"steps": steps, "learning_rate": 1e-2, "validate_every": 0},
        "task_config": {"window": (32, 32, 32), "balance": 1.0, "validate_cases": None},
    }
    if encoder == "scratch":
        request["backbone"] = {"name": "resunet", "channels": (16, 32, 64, 128)}
    learnt = drain(finetune(resolve_request(request), out / "seg"))
    print(f"{learnt['steps']} steps; the model is {learnt['model']}")

    task, model = open_predictor(out / "seg", torch.device("cpu"))
    new = sorted((scans / "imagesTs").glob("*.nii.gz"))
    made = drain(predict_scans(task, model, new, out / "labels"))
    for row in made["predicted"]:
        print(f"{row['result']}: liver {row['volumes_ml']['liver']:.0f} ml")

    scores = drain(evaluate_folder(out / "labels", scans / "labelsTs"))
    for organ, means in scores["labels"].items():
        print(f"{organ:14} Dice {means['dice']:.2f}")
    return float(scores["labels"]["liver"]["dice"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
