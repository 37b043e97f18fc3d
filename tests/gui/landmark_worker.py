"""The worker with an embedding that needs no torch: ``python landmark_worker.py RUN``.

Features are noise with one place that every scan shows, a little less alike in each.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from explore_files import unit_features, write_features

from homolog.errors import JobError
from homolog.events import Job, Progress, Request, Stopped
from homolog.features.files import open_features
from homolog.runs import worker
from homolog.runs.jobs import JOBS
from homolog.scans.files import read_scan

BLOB = (3, 4, 6)
# A scan of this name cannot be embedded.
BAD = "bad"
STEPS, STEP_S = 10, float(os.environ.get("LANDMARK_STEP_S", "0.02"))


def embed(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """As ``homolog.features.of_scans``: entries of the scans, or stopped."""
    entries = []
    for path in map(Path, config["scans"]):
        if path.name.startswith(BAD):
            raise JobError("not enough memory for this scan.")
        for step in range(STEPS):
            time.sleep(STEP_S)
            if (yield Progress("windows", step, STEPS)) is Request.STOP:
                yield Stopped()
                return {"features": [], "stopped": True}
        scan = read_scan(path)
        cells = unit_features(tuple(n // 2 for n in scan.shape))
        cells[BLOB] = 0.85 * np.eye(16)[0] + 0.527 * np.eye(16)[15]
        card = write_features(
            Path(config["folder"]), path, scan.affine, scan.shape, cells
        )
        open_features(card)
        entries.append({"scan": str(path), "card": str(card)})
    return {"features": entries, "stopped": False}


if __name__ == "__main__":  # imported, it must leave this process's own jobs alone
    JOBS["embed"] = "__main__:embed"
    sys.exit(worker.main())
