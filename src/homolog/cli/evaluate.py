"""``homolog evaluate``: how good is a model, or a folder of labels?"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import click

from homolog.cli._dense import Dense, dense_options, existing, features_option, run
from homolog.cli._run import common, show
from homolog.config import ConfigError

# ``homolog evaluate landmarks``: how well are points found?


@click.command("landmarks", short_help="Landmark errors on copies and on pairs.")
@click.argument("scans", nargs=-1, metavar="[SCAN...]", type=click.Path(path_type=Path))
@click.option(
    "--deformed",
    "copies",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Deformed copies of each SCAN.",
)
@click.option(
    "--typical-mm",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Typical (root mean square) displacement of a copy, mm.",
)
@click.option(
    "--points",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Points per copy or pair, drawn in the body (with --labels: in the labels).",
)
@click.option("--pair", metavar="A,B", help="Two scans of different patients instead.")
@click.option(
    "--truth", metavar="A.csv,B.csv", help="Named points of both scans of the pair."
)
@click.option(
    "--labels", metavar="A,B", help="Label maps of both scans: is the organ hit?"
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Gets landmarks.csv (one row per point) and landmarks.json (the summary).",
)
@features_option
@dense_options()
@common
def landmarks_command(
    scans: tuple[Path, ...],
    copies: int,
    typical_mm: float,
    points: int,
    pair: str | None,
    truth: str | None,
    labels: str | None,
    out: Path,
    features: Path | None,
    dense: Dense,
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Landmark errors in mm on deformed copies of scans, or what a pair tells.

    \b
    homolog evaluate landmarks a.nii.gz b.nii.gz --encoder RUN --out scores
    homolog evaluate landmarks --pair a.nii.gz,b.nii.gz --encoder RUN --out scores

    Copies are smoothly bent, turned a little, scaled and noisy, by a known map. Errors
    are over all points, refused matches included; those of accepted ones stand beside.
    """  # noqa: D301 - click reads the backspace
    if bool(scans) == (pair is not None):
        raise click.UsageError("give either scans or --pair A,B.")
    if pair is None and (truth or labels):
        raise click.UsageError("--truth and --labels belong to --pair A,B.")
    both = _two(pair, "--pair")
    for path in both or scans:
        existing(path)
    from homolog.jobs.landmark_scores import DeformedConfig, score_deformed, score_pair

    encoder = dense.open(device)
    if both is not None:
        job = score_pair(
            both, encoder, count=points, seed=seed, truth=_two(truth, "--truth"),
            labels=_two(labels, "--labels"), folder=features,
        )  # fmt: skip
    else:
        asked = DeformedConfig(copies, typical_mm, points, seed)
        job = score_deformed(scans, encoder, asked, folder=features)
    result = run(job)
    if result.pop("stopped"):
        raise KeyboardInterrupt
    rows = result.pop("rows")
    result |= _write(rows, result, out)
    lines = [_line(part["scan"], part) for part in result["scans"]]
    lines.append(_line("overall", result["overall"]))
    show(result, as_json, [*lines, f"written to {result['csv']}"])
    return 0


def _line(name: str, part: dict[str, Any]) -> str:
    text = f"{name}: {part['points']} points, {part['accepted']} accepted"
    if part["median_mm"] is not None:
        text += (
            f", error median {part['median_mm']:.1f} mm, 90 % {part['p90_mm']:.1f} mm, "
            f"within 10 mm {100 * part['within_10_mm']:.0f} %"
        )
    if part["hit_rate"] is not None:
        text += f", same organ {100 * part['hit_rate']:.0f} %"
    if part["cycle_p50_mm"] is not None:
        text += f", cycle error median {part['cycle_p50_mm']:.1f} mm"
    return text


def _write(
    rows: list[dict[str, Any]], result: dict[str, Any], out: Path
) -> dict[str, str]:
    import csv
    import io

    from homolog.words import UnixRows, cell_row
    from homolog.writing import write_json, write_text

    out.mkdir(parents=True, exist_ok=True)
    flat = []
    for row in rows:
        places = {
            f"{name}_{axis}_mm": None if row[f"{name}_mm"] is None else value
            for name in ("a", "true", "b")
            for axis, value in zip("zyx", row[f"{name}_mm"] or [None] * 3, strict=True)
        }
        flat.append({k: v for k, v in row.items() if not isinstance(v, list)} | places)
    text = io.StringIO()
    columns = [k for k in flat[0] if k not in ("true_mm", "b_mm")] if flat else ["scan"]
    writer = csv.DictWriter(
        UnixRows(text), columns, lineterminator="\r\n", extrasaction="ignore"
    )
    writer.writeheader()
    writer.writerows(
        cell_row({k: "" if v is None else v for k, v in row.items()}) for row in flat
    )
    table, summary = out / "landmarks.csv", out / "landmarks.json"
    write_text(table, text.getvalue())
    write_json(summary, result)
    return {"csv": str(table), "json": str(summary)}


def _two(text: str | None, what: str) -> tuple[Path, Path] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise ConfigError(f"{what} must be two paths with a comma, got {text!r}.")
    return Path(parts[0]), Path(parts[1])


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
            name = f"{info_name} landmarks"
            return landmarks_command.make_context(name, args[1:], parent, **extra)
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
    from homolog.cli._run import follow
    from homolog.errors import JobError
    from homolog.events import Finished
    from homolog.jobs.scoring import score_model
    from homolog.use.evaluate import evaluate_folder, write_tables

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
