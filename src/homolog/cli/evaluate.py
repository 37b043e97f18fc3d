"""``homolog evaluate``: how good is a model, or a folder of labels?"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import click

from homolog.cli._options import common, show


class _Evaluate(click.Command):
    """The command, and ``evaluate landmarks``, which takes other arguments."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args and args[0] == "landmarks":
            from homolog.cli._evaluate_landmarks import command as landmarks

            name = f"{info_name} landmarks"
            return landmarks.make_context(name, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(
    "evaluate", cls=_Evaluate, short_help="Dice, NSD and HD95; landmark errors."
)
@click.argument("source", metavar="STORE|PRED_DIR", type=click.Path(path_type=Path))
@click.option(
    "--model",
    default=None,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A finetune run; scores it on STORE.",
)
@click.option(
    "--labels",
    default=None,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="True labels; scores the files of PRED_DIR against those of the same names.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default="test",
    show_default=True,
    help="Cases of STORE.",
)
@click.option(
    "--tolerance",
    "tolerance_mm",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Distance in mm that the NSD forgives.",
)
@click.option(
    "--flips",
    default="",
    metavar="AXES",
    help="Average over mirrorings along these axes, e.g. x or zyx.",
)
@click.option(
    "--out",
    default=None,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Gets metrics.csv and metrics.json.  [default: RUN/evaluation/SPLIT, or "
    "PRED_DIR/evaluation]",
)
@common
def command(
    source: Path,
    model: Path | None,
    labels: Path | None,
    split: str,
    tolerance_mm: float,
    flips: str,
    out: Path | None,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Dice, surface Dice (NSD) and HD95 in mm, per case and label.

    \b
    homolog evaluate --model runs/seg store
    homolog evaluate predictions --labels labelsTs
    homolog evaluate landmarks --help

    A label that neither map has is left out; one that only one has counts as Dice 0,
    NSD 0 and the scan's diagonal. A case's value is the mean over its labels.

    Of a classifier: AUC, average precision, accuracy and calibration error, for each
    class where a scan may have several; likewise of types and slices it tells of.
    """  # noqa: D301 - click reads the backspace
    from homolog.cli._follow import follow
    from homolog.errors import JobError
    from homolog.events import Finished
    from homolog.study.scoring import score_model
    from homolog.tasks._evaluate import evaluate_folder, write_tables

    if (model is None) == (labels is None):
        raise click.UsageError("give either --model RUN or --labels DIR.")
    if labels is not None:
        job = evaluate_folder(source, labels, tolerance_mm=tolerance_mm)
        out = out or source / "evaluation"
    else:
        assert model is not None
        job = score_model(source, model, split, tolerance_mm, flips, device)
        out = out or (model if model.is_dir() else model.parent) / "evaluation" / split
    last = follow(_with_result(job))
    if not isinstance(last, Finished):
        raise JobError("evaluation did not come to its end.")
    result = last.result
    if result["stopped"]:
        return 130
    csv_path, json_path = write_tables(result, out)
    result |= {"csv": str(csv_path), "json": str(json_path)}
    lines = [*result.pop("lines"), f"written to {csv_path}"]
    del result["columns"]
    show(result, as_json, lines)
    return 0


def _with_result(job: Generator[Any, Any, dict[str, Any]]) -> Generator[Any, Any, None]:
    """The job's events, and its result as the last of them."""
    from homolog.events import Finished

    result = yield from job
    yield Finished(result)
