"""What models know of a store's labels: what is asked, and how it is told. No Qt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.gui.shared.models import ModelCard
from homolog.probe.report import ranking
from homolog.words import counted


def can_be_probed(model: ModelCard) -> bool:
    """Whether a model has an encoder."""
    return not model.damaged and bool(model.card.get("backbone"))


def asked_about(
    models: Sequence[ModelCard], ticked: Collection[Path], chosen: ModelCard | None
) -> list[ModelCard]:
    """The models that are probed: all that are ticked, or else the chosen one.

    Args:
        models: In the order they are listed.
        ticked: Their paths.
        chosen: The selected one.
    """
    found = [m for m in models if m.path in ticked and can_be_probed(m)]
    if not found and chosen is not None and can_be_probed(chosen):
        found = [chosen]
    return found


def about(models: Sequence[ModelCard]) -> str:
    """Which models are asked about, in a sentence."""
    if not models:
        return "Choose a model with an encoder, or tick several to compare them."
    if len(models) == 1:
        return f"About {models[0].name}. Tick models in the list to compare them."
    return f"Compares {counted(len(models), 'model')}: " + ", ".join(
        m.name for m in models
    )


def hands_on_decoder(model: ModelCard) -> bool:
    """Whether a decoder lies beside the encoder, or within a segmentation model."""
    spec = model.card.get("task_spec") or {}
    return bool(model.card.get("decoder") or spec.get("label_values"))


def config_of(
    store: Path,
    models: Sequence[ModelCard],
    patients: int,
    features: Path,
    out: Path,
    decoder: int = 0,
) -> dict[str, Any]:
    """What the worker gets.

    Args:
        store: With labels.
        models: That are probed.
        patients: Labelled ones that teach; 0: as many as usual.
        features: Where feature maps are kept.
        out: Folder of page and tables.
        decoder: Voxels a side over which features of decoders are means; 0: these are
            not probed.
    """
    return {
        "store": str(store.absolute()),
        "encoder": [str(m.path.absolute()) for m in models],
        "patients": patients or None,
        "features": str(features.absolute()),
        "out": str(out.absolute()),
        "decoder": decoder,
    }


@dataclass(frozen=True)
class Answer:
    """What is shown of a probe.

    Attributes:
        head: Titles of the columns.
        rows: Texts; the models first, best first, then what needs no network.
        models: How many of the rows are models.
        text: The verdict, and one for each model.
        page: The report.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    models: int
    text: str
    page: Path | None


def answer_of(result: Mapping[str, Any], warnings: Sequence[str] = ()) -> Answer:
    """A finished job's result."""
    head, rows = ranking(result)
    told = [str(result["verdict"])]
    if len(result["encoders"]) > 1:
        told += [str(e["verdict"]) for e in result["encoders"]]
    told += [f"⚠ {f['reason']}" for f in result["failed"]]
    told += [f"⚠ {text}" for text in dict.fromkeys(warnings)]
    page = Path(result["html"]) if result.get("html") else None
    return Answer(
        tuple(head), tuple(map(tuple, rows)), len(result["encoders"]),
        "\n\n".join(told), page,
    )  # fmt: skip
