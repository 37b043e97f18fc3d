"""What a recipe says, read from the engine's description; no Qt here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homolog.config import merge

_STEPS = 1000  # of TrainingConfig, where a recipe says nothing


def recipe_for(recipe: str, device: str, best: str) -> str:
    """``auto`` decided as the engine decides it: by whether a GPU computes.

    Args:
        recipe: As chosen.
        device: As chosen; ``auto`` takes the best.
        best: The best device here.
    """
    if recipe != "auto":
        return recipe
    return "gpu" if (best if device == "auto" else device).startswith("cuda") else "cpu"


def recipe_values(
    described: Mapping[str, Any], recipe: str, network: str = ""
) -> dict[str, Any]:
    """Tables of a recipe: ``method`` or ``task``, ``backbone``, ``training``.

    Args:
        described: A method or task of the engine's description.
        recipe: Name of one of its recipes; an unknown one says nothing.
        network: Whose special settings are merged in, where the recipe has such.
    """
    found = dict(described.get("recipes", {}).get(recipe) or {})
    special = found.pop("with", {})
    return merge(found, special.get(network) or {})


def recipe_steps(described: Mapping[str, Any], recipe: str, network: str = "") -> int:
    """Steps that a recipe asks for."""
    training = recipe_values(described, recipe, network).get("training") or {}
    return int(training.get("steps", _STEPS))


def recipe_network(described: Mapping[str, Any], recipe: str) -> str:
    """The network of a recipe; empty when it names none."""
    backbone = recipe_values(described, recipe).get("backbone") or {}
    return str(backbone.get("name", ""))


def network_base(
    described: Mapping[str, Any], recipe: str, network: str, small: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings a network starts from.

    Args:
        described: A method or task of the engine's description.
        recipe: Name of the recipe.
        network: The one that will be trained.
        small: Its settings for a small machine.
    """
    if network == recipe_network(described, recipe):
        backbone = dict(recipe_values(described, recipe).get("backbone") or {})
        backbone.pop("name", None)
        return backbone
    return dict(small) if recipe == "cpu" else {}


def about_text(doc: str, paper: str) -> str:
    """The opening of a description, and who published it where, for a few lines.

    Args:
        doc: Description, paragraphs.
        paper: Citation ``authors, title, where``, or empty.
    """
    opening = " ".join(doc.strip().split("\n\n")[0].split())
    parts = [part.strip() for part in paper.split(",") if part.strip()]
    if not parts:
        return opening
    short = parts[0] if len(parts) == 1 else f"{parts[0]}, {parts[-1]}"
    return f"{opening} ({short})"
