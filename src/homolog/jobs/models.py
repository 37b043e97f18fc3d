"""Look after trained networks: check them, take in other people's, hand ours out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, option
from homolog.events import Job, Note, Progress, Saved
from homolog.exporting.export import export_model
from homolog.exporting.kinds import DEFAULT, KINDS

COMMAND = ""  # ``homolog models`` has a command for each action


@dataclass(frozen=True)
class Config:
    """One of the actions on models."""

    action: str = option(..., "What to do.", choices=("check", "import", "export"))
    source: str = option(
        ..., "Run, model folder, weight file or a model's name.", reads="model"
    )
    out: str | None = option(
        None,
        "A new model folder to import into; a new file or folder to export to.",
        writes=True,
    )
    backbone: str | None = option(
        None,
        "Network of another project's weight file, where its names do not tell it.",
    )
    settings: dict[str, Any] | None = option(
        None, "Settings of that network; they win over those read off the file."
    )
    below: str | None = option(
        None, "What the names begin with, where a file holds several networks."
    )
    kind: str = option(DEFAULT, "What to export.", choices=tuple(KINDS))
    check: str | None = option(
        None, "A scan that what was exported labels, too.", reads=True
    )
    allow_dropped: bool = option(
        False, "Go on where part of the file's encoder would be dropped, or is missing."
    )


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """One of the actions on models.

    Returns:
        As ``check_model``, ``import_model`` or ``export_model``.
    """
    from homolog.model_files import care

    action, source = config.action, Path(config.source)
    if action != "check" and not config.out:
        raise ConfigError(f"{action} needs a place to write to (out).")
    yield Progress(action, 0, 1, source.name)
    network = care.hint(config.backbone, config.settings or {}, config.below)
    out = Path(config.out or "")
    if action == "check":
        result = care.check_model(source, network)
    elif action == "import":
        result = care.import_model(
            source, out, network, allow_dropped=config.allow_dropped
        )
        yield Saved(result["model"], "encoder")
    else:
        check = Path(config.check) if config.check else None
        result = export_model(source, out, config.kind, check)
        yield Saved(result["file"], "encoder" if config.kind == DEFAULT else "export")
    for line in result.pop("lines", []):
        yield Note(line)
    yield Progress(action, 1, 1, source.name)
    return result
