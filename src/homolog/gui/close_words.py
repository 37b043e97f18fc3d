"""The question before a window with running trainings closes; no Qt widgets."""

from __future__ import annotations

from collections.abc import Sequence

from homolog.gui.questions import Question
from homolog.gui.runs.story import saved_step
from homolog.gui.runs.words import duration, headline
from homolog.runs.run import Run


def question_about(runs: Sequence[Run]) -> Question:
    """Names the trainings, says how far they are and what is safe."""
    lines = [line_about(run) for run in runs]
    one = len(runs) == 1
    return Question(
        "A training is running" if one else f"{len(runs)} trainings are running",
        "Still running:\n" + "\n".join(lines),
        "In the background it goes on without this window; the tab Runs finds it "
        "again, also after a restart. Stopping saves its state and its model, and it "
        "can be resumed.",
        (
            ("keep", "Keep training in background"),
            ("stop", "Stop and save"),
            ("cancel", "Cancel"),
        ),
        "keep",
        "Always do this",
    )


def line_about(run: Run) -> str:
    """``"Pretraining run-07, step 12/100, about 17 min left; step 10 is saved"``."""
    step, spec = run.last_step(), run.spec
    text = headline(
        str(spec["kind"]), run.folder.name, "running",
        step.index if step else 0, step.total if step else 0,
    )  # fmt: skip
    if step and step.remaining_s > 0:
        text += f", about {duration(step.remaining_s)} left"
    saved = saved_step(run.folder)
    safe = "nothing is saved yet" if saved is None else f"step {saved} is saved"
    return f"{text}; {safe}."
