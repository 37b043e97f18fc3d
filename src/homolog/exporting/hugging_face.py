"""A model as a folder in the layout of the Hugging Face hub; nothing is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.exporting.told import (
    card_lines,
    labels_of,
    licence_of,
    public_card,
    title_of,
)
from homolog.model_files.card import CARD, MEMBERS
from homolog.model_files.folder import load_model, read_weights, save_model

WEIGHTS = "model.safetensors"
# The hub's names of licences, as far as cards are likely to hold them.
_LICENCES = {
    "apache-2.0": r"apache",
    "cc-by-nc-sa-4.0": r"cc[ -]by[ -]nc[ -]sa",
    "cc-by-nc-nd-4.0": r"cc[ -]by[ -]nc[ -]nd",
    "cc-by-nc-4.0": r"cc[ -]by[ -]nc",
    "cc-by-sa-4.0": r"cc[ -]by[ -]sa",
    "cc-by-4.0": r"cc[ -]by",
    "cc0-1.0": r"cc0|public domain",
    "mit": r"\bmit\b",
    "bsd-3-clause": r"bsd",
}
_TASKS = {
    "segment": "image-segmentation",
    "classify": "image-classification",
    "detect": "object-detection",
    "translate": "image-to-image",
}


def export_folder(source: Path, out: Path) -> dict[str, Any]:
    """Write a new folder: config.json, README.md and model.safetensors.

    It is a model folder of ours, too: every command takes it as it is.

    Args:
        source: Run or model folder, or an imported one.
        out: New folder.

    Returns:
        ``lines`` for people.

    Raises:
        UnusableInput: No model there, or one without a network.
    """
    model = load_model(source)
    card = public_card(model.card)
    if not card.get("backbone") and not card.get(MEMBERS):
        raise UnusableInput(
            f"{source} ({card.get('kind')}) has no network to hand out."
        )
    own = model.card["weights"]
    extra = {
        Path(name).stem: read_weights(model.folder, card, name)
        for name in model.card["sha256"]
        if name != own
    }
    pages = {"README.md": _page(card), "config.json": _json(config(card))}
    save_model(out, model.state, card, Path(WEIGHTS).stem, extra, pages)
    return {"lines": ["send it with: hf upload USER/NAME " + str(out)]}


def config(card: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: what builds the network and prepares its scans."""
    labels = labels_of(card)
    backbone = card.get("backbone") or {}
    spec = card.get("task_spec") or {}
    found = {
        "model_type": "homolog",
        "library_name": "homolog",
        "task": card.get("kind") or "encoder",
        "backbone": backbone,
        "num_channels": (backbone.get("config") or {}).get("in_channels", 1),
        "window": spec.get("window") or card.get("window"),
        "preprocessing": card.get("preprocessing") or {},
        "learnt_spacing_mm": card.get("learnt_spacing_mm"),
    }
    if labels:
        found["id2label"] = {str(i): n for i, n in enumerate(labels.values())}
        found["label2id"] = {n: i for i, n in enumerate(labels.values())}
        found["label_values"] = list(labels)
    return found


def licence_id(card: Mapping[str, Any]) -> str:
    """The hub's name of the weights' licence; ``other`` where none fits."""
    told = str(card.get("licence") or "").lower()
    return next((name for name, words in _LICENCES.items() if re.search(words, told)),
                "other")  # fmt: skip


def _front(card: Mapping[str, Any]) -> list[str]:
    """YAML that the hub reads."""
    kind = str(card.get("kind") or "encoder")
    modalities = (card.get("task_spec") or {}).get("modalities") or card.get(
        "modalities"
    )
    tags = [
        "homolog",
        "medical",
        "3d",
        kind,
        *sorted(m.lower() for m in modalities or ()),
    ]
    if backbone := (card.get("backbone") or {}).get("name"):
        tags.append(str(backbone))
    licence = licence_id(card)
    lines = ["---", f"license: {licence}"]
    if licence == "other":
        lines.append(f"license_name: {json.dumps(licence_of(card))}")
    lines += [
        "library_name: homolog",
        f"pipeline_tag: {_TASKS.get(kind, 'image-feature-extraction')}",
    ]
    return [
        *lines,
        "tags:",
        *(f"- {json.dumps(t)}" for t in dict.fromkeys(tags)),
        "---",
        "",
    ]


def _page(card: Mapping[str, Any]) -> str:
    """README.md, the model card."""
    use = (
        ["homolog predict SCAN.nii.gz --model . --out LABELS"]
        if card.get("task_spec")
        else ["homolog embed SCAN.nii.gz --encoder . --out FEATURES"]
    )
    return "\n".join(
        [
            *_front(card), f"# {title_of(card)}", "",
            f"`{WEIGHTS}` holds the weights under the network's own names; "
            f"`config.json` the network, its labels and how scans are prepared; "
            f"`{CARD}` all that is known of it.", "",
            "```sh", "pip install napari-homolog", *use, "```", "",
            *card_lines(card), "",
        ]
    )  # fmt: skip


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
