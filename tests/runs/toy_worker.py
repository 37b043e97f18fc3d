"""The worker with toy jobs: ``python toy_worker.py RUN`` (see homolog.runs.worker)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from homolog.runs import worker
from homolog.runs.jobs import JOBS

JOBS["toy"] = "toy_training:job"
JOBS["failing"] = "toy_training:failing_job"

if __name__ == "__main__":
    sys.exit(worker.main())
