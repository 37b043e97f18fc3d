"""``homolog methods``: what can be pretrained."""

from __future__ import annotations

from typing import Any

import click

from homolog.cli._run import show


@click.command("methods", short_help="List what can be pretrained.")
@click.option(
    "--json", "as_json", is_flag=True,
    help="Last line of standard output is one JSON object.",
)  # fmt: skip
def command(as_json: bool) -> None:
    """List the methods: title, paper, backbones, recipes, whether labels are used."""
    from homolog.methods import METHODS

    found: dict[str, dict[str, Any]] = {}
    for name in METHODS.names():
        cls = METHODS.get(name)
        found[name] = {
            "title": cls.title,
            "paper": cls.paper,
            "backbones": list(cls.backbones) or ["any"],
            "uses_labels": cls.uses_labels,
            "recipes": sorted(cls.RECIPES),
        }
    width = max(map(len, found), default=0)
    lines = []
    for name, told in found.items():
        labels = "labels" if told["uses_labels"] else "no labels"
        lines.append(
            f"{name:<{width}}  {told['title']}. {labels}; backbones: "
            f"{', '.join(told['backbones'])}; recipes: {', '.join(told['recipes'])}. "
            f"{told['paper']}"
        )
    show({"methods": found}, as_json, lines)
