"""An encoder from a run, a model folder or another project's weight file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.backbones._base import Backbone, build
from homolog.config import config_hash, to_dict
from homolog.errors import UnusableInput
from homolog.foreign_weights import read_foreign
from homolog.model_card import CARD
from homolog.model_files.folder import load_model, read_weights
from homolog.model_files.matching import LoadReport, fill

if TYPE_CHECKING:
    from homolog.methods._base import Embedder

LEAST_MATCHED = 0.9


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """An encoder with its weights.

    Attributes:
        backbone: In evaluation mode, on the CPU.
        card: ``model.json``; of a foreign file: ``kind``, ``backbone``, ``source``.
        report: What matched.
        encoder_id: Hash of weights and configuration, 16 hex digits.
        folder: The model folder, None for a foreign file.
    """

    backbone: Backbone
    card: dict[str, Any]
    report: LoadReport
    encoder_id: str
    folder: Path | None = None


def load_encoder(
    source: str | Path,
    backbone_hint: str | Mapping[str, Any] | None = None,
    in_channels: int | None = None,
    least_matched: float = LEAST_MATCHED,
    *,
    allow_dropped: bool = False,
) -> LoadedEncoder:
    """An encoder from our own folders or from a foreign weight file.

    Args:
        source: RUN, model folder, ``.safetensors`` or ``.pt`` file.
        backbone_hint: For foreign files: a backbone's name, or a mapping with ``name``
            and ``config``. Ours know it.
        in_channels: Channels of the images it will see; the first layer is adapted.
        least_matched: Share of the encoder's parameters that must be found.
        allow_dropped: Go on where the file's encoder is larger than the network, or
            tells image channels apart that the network has not.

    Raises:
        UnusableInput: Nothing there, damaged, unsafe, or too little of it matches; part
            of it would be dropped; or weights that are no numbers.
    """
    path = Path(source)
    foreign = path.is_file() and not (path.parent / CARD).is_file()
    if foreign:
        folder: Path | None = None
        card: dict[str, Any] = {"kind": "encoder", "source": str(path)}
        state, chosen = read_foreign(path), _hinted(backbone_hint, path)
    else:
        model = load_model(path)
        folder, card, state = model.folder, model.card, model.state
        chosen = card.get("backbone") or _hinted(backbone_hint, path)
    settings: dict[str, Any] = dict(chosen.get("config") or {})
    if in_channels is not None:
        settings["in_channels"] = in_channels
    backbone = build(str(chosen["name"]), settings)
    card = {**card, "backbone": {"name": chosen["name"], "config": _settings(backbone)}}
    report = fill(backbone, state, str(path))
    if report.share < least_matched:
        raise UnusableInput(
            f"only {report.share:.1%} of the encoder {chosen['name']!r} was found in "
            f"{path}, at least {least_matched:.0%} is needed.\n"
            + "\n".join(report.lines()[1:])
        )
    if report.nonfinite:
        raise UnusableInput(
            f"{path} holds NaN or infinite weights in {len(report.nonfinite)} tensors "
            f"(first {report.nonfinite[0]}); nothing can be computed with them."
        )
    if report.dropped and not allow_dropped:
        raise UnusableInput(
            f"{path} would lose {report.dropped}: the encoder {chosen['name']!r} with "
            "these settings is another one. Give the settings of its own (--set); or "
            "take what fits by homolog models import --allow-dropped.\n"
            + "\n".join(report.lines()[1:])
        )
    backbone.eval()
    return LoadedEncoder(backbone, card, report, encoder_id(backbone), folder)


def encoder_id(backbone: Backbone) -> str:
    """16 hex digits that change with any weight or setting of an encoder."""
    digest = hashlib.sha256(config_hash(_settings(backbone)).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_embedder(encoder: LoadedEncoder) -> Embedder:
    """The dense features an encoder was made for: its maps and their heads.

    A card without a method (a foreign file, a fine-tuned model) gives the map next to
    the coarsest, without a head.

    Raises:
        UnusableInput: The heads' weights are missing or damaged.
    """
    from homolog.config import from_dict
    from homolog.methods import METHODS
    from homolog.methods._base import Embedder

    told = encoder.card.get("embedding") or {}
    if not told.get("heads"):
        last = max(len(encoder.backbone.strides) - 2, 0)
        return Embedder(encoder.backbone, told.get("maps") or {"features": last}).eval()
    if encoder.folder is None:
        raise UnusableInput("an encoder with heads needs its model folder.")
    method = METHODS.get(encoder.card["method"])
    settings: Any = from_dict(method.Config, encoder.card["method_config"])
    embedder = method(encoder.backbone, settings).embedder()
    heads = read_weights(encoder.folder, encoder.card, "embedder.safetensors")
    embedder.load_own_state(heads)
    return embedder.eval()


def _settings(backbone: Backbone) -> dict[str, Any]:
    return to_dict(backbone.config)


def _hinted(hint: str | Mapping[str, Any] | None, path: Path) -> dict[str, Any]:
    if hint is None:
        raise UnusableInput(
            f"{path} does not say which network it is: name the backbone (--backbone)."
        )
    return {"name": hint} if isinstance(hint, str) else dict(hint)
