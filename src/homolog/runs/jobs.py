"""Which function does a run's work, by its kind; imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.events import Job

# A job takes (config, folder), resumes by itself where the folder holds a checkpoint,
# and returns a summary of JSON types.
JOBS: dict[str, str] = {
    "pretrain": "homolog.pretrain:job",
    "finetune": "homolog.tasks._finetune:job",
    "demo": "homolog.study.demo:job",
}


def job_of(kind: str) -> Callable[[dict[str, Any], Path], Job[dict[str, Any]]]:
    """The job function of a kind.

    Raises:
        UnusableInput: Unknown kind (a run of a newer version?).
    """
    if kind not in JOBS:
        raise UnusableInput(
            f"unknown kind of run {kind!r}; known: {', '.join(sorted(JOBS))}."
        )
    module, _, name = JOBS[kind].partition(":")
    function: Callable[[dict[str, Any], Path], Job[dict[str, Any]]] = getattr(
        importlib.import_module(module), name
    )
    return function
