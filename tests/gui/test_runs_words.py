"""What is said about runs: plain, short, and true; no Qt here."""

from __future__ import annotations

from each import each
from homolog.gui.shared.runs import clock, diagnose, headline, state_words

NOON = 1_700_000_000.0


def test_the_headline_is_that_of_the_design() -> None:
    text = headline("pretrain", "run-07", "running", 12, 100, 3.1, 272.8, NOON)
    assert text.startswith("Pretraining run-07, step 12/100, 3.1 s/step, ends about ")
    assert text.endswith(clock(272.8, NOON))
    assert headline("finetune", "a", "stopped", 3, 9) == (
        "Fine-tuning a, step 3/9, stopped"
    )
    assert headline("pretrain", "a", "new") == "Pretraining a, not started"


def test_every_state_has_a_sign_and_a_word() -> None:
    for state in ("new", "running", "paused", "stopped", "finished", "failed",
                  "crashed", "stopping", "damaged"):  # fmt: skip
        sign, _, word = state_words(state).partition(" ")
        assert sign
        assert word.islower()


@each("state, message, log, kind, cause, said", [
        ("crashed", "", "Killed", "", "killed", "lack of memory"),
        ("crashed", "", "CUDA error: out of memory", "", "memory", "ran out of memory"),
        ("failed", "CUDA out of memory. Tried to allocate 2 GiB", "", "failed",
         "gpu_memory", "The GPU ran out of memory at batch size 4"),
        ("failed", "20 steps in a row up to step 31 were not finite (seed 0)", "",
         "failed", "nan", "infinite or not a number"),
        ("failed", "the store has no labels", "", "unusable", "unusable",
         "The store has no labels."),
        ("failed", "the checkpoint of step 3 could not be saved", "", "failed", "disk",
         "disk is full"),
        ("failed", "", "", "failed", "other", "Training broke off"),
    ])  # fmt: skip
def test_an_end_is_explained(
    state: str, message: str, log: str, kind: str, cause: str, said: str
) -> None:
    trouble = diagnose(
        state, message, log, error_kind=kind, saved_step=10, step=12, total=100,
        plan={"batch_size": 4},
    )  # fmt: skip
    assert trouble is not None
    assert trouble.cause == cause
    assert said in trouble.what
    if cause != "unusable":
        assert "The state of step 10 is saved" in trouble.advice


def test_a_batch_of_one_is_not_told_to_shrink() -> None:
    trouble = diagnose("failed", "out of memory", "", plan={"batch_size": 1})
    assert trouble is not None
    assert "smaller batch" not in trouble.advice
    assert "smaller window" in trouble.advice


def test_sound_runs_have_no_trouble() -> None:
    for state in ("running", "finished", "stopped", "new", "paused"):
        assert diagnose(state, "", "") is None
