"""An encoder from a run, a model folder or another project's weight file.

What of a file fits a network is found by names and shapes, with an account of what does
not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from homolog.backbones import build
from homolog.backbones.base import Backbone, adapt_state, renamed_state
from homolog.config import ConfigError, config_hash, to_dict
from homolog.errors import UnusableInput
from homolog.json_files import SENSELESS, object_or_none
from homolog.model_files.card import CARD, read_card
from homolog.model_files.folder import find_model, load_model
from homolog.model_files.foreign import Foreign, read_foreign
from homolog.model_files.layouts import PREFERRED, Recognised, candidates, recognise
from homolog.model_files.published import published_card, settled
from homolog.words import counted

_DEPTH_OF_PREFIX = 6
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
        backbone_hint: For foreign files whose layout does not tell: a backbone's name,
            or a mapping with ``name``, ``config`` and ``below`` (a prefix). Settings
            that are named win over those that are read off the file. Ours know it.
        in_channels: Channels of the images it will see; the first layer is adapted.
        least_matched: Share of the encoder's parameters that must be found.
        allow_dropped: Go on where the file's encoder is larger than the network, lacks
            parts of it, or distinguishes image channels that the network has not.

    Raises:
        UnusableInput: Nothing there, damaged, unsafe, or too little of it matches; part
            of it would be dropped; or weights that are no numbers.
    """
    path = Path(source)
    if _is_foreign(path):
        loaded, _ = load_foreign(
            path, backbone_hint, in_channels, least_matched, allow_dropped=allow_dropped
        )
        return loaded
    model = load_model(path)
    chosen = model.card.get("backbone") or _hinted(backbone_hint)
    if chosen is None:
        raise UnusableInput(f"{path} does not say which network it is.")
    settings: dict[str, Any] = dict(chosen.get("config") or {})
    try:
        backbone, card = _built(chosen["name"], settings, in_channels, model.card)
    except (UnusableInput, ConfigError):
        raise
    except SENSELESS as error:
        raise UnusableInput(
            f"{model.folder / CARD} is damaged (the network cannot be built: {error})."
        ) from error
    report = fill(backbone, model.state, str(path))
    _check(report, chosen["name"], least_matched, allow_dropped)
    backbone.eval()
    return LoadedEncoder(backbone, card, report, encoder_id(backbone), model.folder)


def load_foreign(
    path: Path,
    hint: str | Mapping[str, Any] | None = None,
    in_channels: int | None = None,
    least_matched: float = LEAST_MATCHED,
    *,
    allow_dropped: bool = False,
) -> tuple[LoadedEncoder, Foreign]:
    """As ``load_encoder``, of another project's file, and all that the file holds.

    The layout of the file tells network and settings, see ``layouts``; what is known of
    the preparation of its scans stands in the card, see ``published``.
    """
    file = read_foreign(path)
    given = _hinted(hint) or {}
    beside = _card_beside(path)
    found: Recognised | None = None
    own: dict[str, Any] = dict(given.get("config") or {})
    name = given.get("name")
    card: dict[str, Any] = {"kind": "encoder", "source": str(path)}
    if name is None and beside is not None:
        chosen = beside["backbone"]
        name, own = chosen["name"], {**(chosen.get("config") or {}), **own}
        card = {**beside, **card}
    else:
        found = _recognised(file, name, given.get("below"))
    if found is not None:
        found = settled(file, found)
        name, own = found.layout.backbone, {**found.settings, **own}
        card |= published_card(file, found)
    backbone, card = _built(str(name), own, in_channels, card)
    report = fill(backbone, file.tensors, str(path), found)
    _check(report, str(name), least_matched, allow_dropped, found)
    backbone.eval()
    return LoadedEncoder(backbone, card, report, encoder_id(backbone)), file


def _recognised(
    file: Foreign, name: str | None, below: str | None
) -> Recognised | None:
    """The layout of a file; None where a network is named that no layout is known of.

    Raises:
        UnusableInput: No network is named, and the layout does not tell one.
    """
    if name is None:
        return recognise(file.shapes, file.told, below=below, source=str(file.path))
    fitting, _ = candidates(file.shapes, file.told, backbone=name, below=below)
    if len(fitting) > 1:
        recognise(
            file.shapes, file.told, backbone=name, below=below, source=str(file.path)
        )
    return fitting[0] if fitting else None


def _card_beside(path: Path) -> dict[str, Any] | None:
    """The card that an exported encoder has beside it; None where there is none."""
    for place in (path.with_suffix(".json"), path.with_name("config.json")):
        found = object_or_none(place, {"backbone": {"name": str}})
        if found is not None:
            return {k: v for k, v in found.items() if k not in ("weights", "sha256")}
    return None


def _built(
    name: str, settings: Mapping[str, Any], channels: int | None, card: dict[str, Any]
) -> tuple[Backbone, dict[str, Any]]:
    """The network, and the card that says its settings."""
    more = {} if channels is None else {"in_channels": channels}
    backbone = build(name, {**settings, **more})
    return backbone, {**card, "backbone": {"name": name, "config": _settings(backbone)}}


def _check(
    report: LoadReport,
    name: str,
    least_matched: float,
    allow_dropped: bool,
    found: Recognised | None = None,
) -> None:
    """Refuse what would not be the file's encoder."""
    path, table = report.source, "\n".join(report.lines()[1:])
    if report.share < least_matched:
        raise UnusableInput(
            f"only {report.share:.1%} of the encoder {name!r} was found in "
            f"{path}, at least {least_matched:.0%} is needed.\n{table}"
        )
    if report.nonfinite:
        raise UnusableInput(
            f"{path} holds NaN or infinite weights in {len(report.nonfinite)} tensors "
            f"(first {report.nonfinite[0]}); nothing can be computed with them."
        )
    if report.dropped and not allow_dropped:
        raise UnusableInput(
            f"{path} would lose {report.dropped}: the encoder {name!r} with "
            "these settings is another one. Give the settings of its own (--set); or "
            f"take what fits by homolog models import --allow-dropped.\n{table}"
        )
    if found and report.lacking and least_matched > 0 and not allow_dropped:
        raise UnusableInput(
            f"{path} lacks {counted(len(report.lacking), 'tensor')} of the encoder "
            f"{name!r} (first {report.lacking[0]}), which would keep random weights; "
            f"take it all the same by homolog models import --allow-dropped.\n{table}"
        )


def own_backbone(source: str | Path) -> dict[str, Any] | None:
    """``name`` and ``config`` of the network in one of our own folders.

    Args:
        source: As for ``load_encoder``.

    Returns:
        None for another project's weight file in no layout that is known.

    Raises:
        UnusableInput: Nothing there, or damaged.
    """
    path = Path(source)
    if _is_foreign(path):
        file = read_foreign(path)
        beside = _card_beside(path)
        if beside is not None:
            return {"config": {}, **beside["backbone"]}
        fitting, _ = candidates(file.shapes, file.told)
        if len(fitting) != 1:
            return None
        return {"name": fitting[0].layout.backbone, "config": fitting[0].settings}
    told = read_card(find_model(path)).get("backbone")
    return None if not told else {"config": {}, **told}


def _is_foreign(path: Path) -> bool:
    """A weight file that is not of a model folder."""
    return path.is_file() and not (path.parent / CARD).is_file()


def encoder_id(backbone: Backbone) -> str:
    """16 hex digits that change with any weight or setting of an encoder."""
    digest = hashlib.sha256(config_hash(_settings(backbone)).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings(backbone: Backbone) -> dict[str, Any]:
    return to_dict(backbone.config)


def _hinted(hint: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if hint is None:
        return None
    return {"name": hint} if isinstance(hint, str) else dict(hint)


# From the names of a weight file to the names of a network, with an account.


@dataclass(frozen=True)
class LoadReport:
    """What of an encoder was found in a file.

    Attributes:
        source: The file.
        matched: Parameters and buffers that were loaded.
        missing: Of the encoder, not in the file; they keep their random start.
        unexpected: In the file, not of the encoder (heads, decoders, other networks).
        misshaped: Name, shape expected, shape found.
        share: Share of the encoder's parameters (counted in numbers) that matched.
        prefix: What was cut off the file's names.
        left_over: Those of ``unexpected`` that stand among the encoder's own parts:
            the file's network is larger, and what it learnt there is lost.
        summed: First layers whose image channels do not fit, and were brought together:
            name, shape expected, shape found.
        nonfinite: Of those matched, with NaN or infinite values.
        lacking: Those of ``missing`` that were to be learnt: the others follow from the
            settings, or are never used.
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    share: float
    prefix: str = ""
    left_over: tuple[str, ...] = ()
    summed: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    nonfinite: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    @property
    def dropped(self) -> str:
        """What the file's encoder knows and this network does not; empty for nothing.

        Half a sentence. A colour picture's three channels into one of grey are no loss:
        the sum sees a grey picture as the three saw it.
        """
        parts = []
        if self.left_over:
            tensors = counted(len(self.left_over), "tensor")
            text = f"{tensors} of the encoder (first {self.left_over[0]})"
            if all(".running_" in name for name in self.left_over):
                text += ", all running statistics of batch norm (norm=batch keeps them)"
            parts.append(text)
        if self.misshaped:
            name, wanted, found = self.misshaped[0]
            parts.append(
                f"{len(self.misshaped)} of other shapes (first {name}, {list(found)} "
                f"instead of {list(wanted)})"
            )
        for name, wanted, found in self.summed:
            if (found[1], wanted[1], len(found)) == (3, 1, 4):
                continue
            parts.append(
                f"what tells its {found[1]} image channels apart ({name}, summed into "
                f"{wanted[1]})"
            )
        return ", ".join(parts)

    def lines(self) -> list[str]:
        """For people: the counts, and the first names of each kind."""
        found = [
            f"{self.source}: {self.share:.1%} of the encoder matched"
            + (f" (names below {self.prefix!r})" if self.prefix else "")
        ]
        shapes = [f"{n} {list(a)} <- {list(b)}" for n, a, b in self.misshaped]
        for kind, names in (
            ("matched", self.matched),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", shapes),
            ("left over", self.left_over),
            ("summed", [f"{n} {list(a)} <- {list(b)}" for n, a, b in self.summed]),
        ):
            if not names and kind in ("left over", "summed"):
                continue
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            found.append(f"  {kind:<11}{len(names):>5}  {some}".rstrip())
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON types; long lists are cut after 20 names."""
        return {
            "source": self.source,
            "share": round(self.share, 6),
            "prefix": self.prefix,
            "matched": len(self.matched),
            "missing": list(self.missing[:20]),
            "unexpected": list(self.unexpected[:20]),
            "misshaped": [[n, list(a), list(b)] for n, a, b in self.misshaped[:20]],
            "left_over": list(self.left_over[:20]),
            "summed": [[n, list(a), list(b)] for n, a, b in self.summed],
        }


def fill(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    source: str = "weights",
    layout: Recognised | None = None,
) -> LoadReport:
    """Load what fits into a backbone; says what did not.

    Args:
        backbone: To be filled.
        state: Names -> tensors.
        source: For the report.
        layout: What the file was recognised as. Where it was not, the names may stand
            below any prefix of up to six parts (``module.``, ``student.backbone.``,
            ...): the best fitting one is used.
    """
    wanted = backbone.state_dict()
    best: tuple[float, str, dict[str, Tensor]] = (-1.0, "", {})
    given: dict[str, Tensor] = {}
    for prefix in _prefixes(state) if layout is None else [layout.prefix]:
        inside = _below(prefix, state) if layout is None else layout.inside(state)
        adapted = adapt_state(inside, backbone)
        share = _share(backbone, adapted)
        if share > best[0] + 1e-9:
            best, given = (share, prefix, adapted), inside
    share, prefix, found = best
    matched = {
        k: v for k, v in found.items() if k in wanted and v.shape == wanted[k].shape
    }
    backbone.load_state_dict(matched, strict=False)
    odd = [
        (k, tuple(wanted[k].shape), tuple(found[k].shape))
        for k in found
        if k in wanted and k not in matched
    ]
    unexpected = tuple(k for k in found if k not in wanted)
    missing = tuple(k for k in wanted if k not in found)
    learnt = {name for name, _ in backbone.named_parameters()}
    own = {_part(name) for name in wanted}
    return LoadReport(
        source=source,
        matched=tuple(matched),
        missing=missing,
        lacking=tuple(k for k in missing if k in learnt or ".running_" in k),
        unexpected=unexpected,
        misshaped=tuple(odd),
        share=max(share, 0.0),
        prefix=prefix,
        left_over=tuple(
            k for k in unexpected if _part(k) in own and found[k].is_floating_point()
        ),
        summed=_summed(renamed_state(given, backbone), matched),
        nonfinite=tuple(
            k
            for k, v in matched.items()
            if v.is_floating_point() and not bool(v.isfinite().all())
        ),
    )


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _part(name: str) -> str:
    """The part of a network a name stands in: ``layers1c.0.norm`` -> ``layers``."""
    return re.split(r"[0-9.]", name, maxsplit=1)[0]


def _summed(
    given: Mapping[str, Tensor], matched: Mapping[str, Tensor]
) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
    """First layers that had several image channels, and other ones than wanted."""
    return tuple(
        (name, tuple(value.shape), tuple(given[name].shape))
        for name, value in matched.items()
        if value.shape != given[name].shape and given[name].shape[1] > 1
    )


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """Every beginning of a name, the likely ones first."""
    found = {""}
    for name in state:
        parts = name.split(".")[:-1][:_DEPTH_OF_PREFIX]
        found |= {".".join(parts[: i + 1]) + "." for i in range(len(parts))}

    def order(prefix: str) -> tuple[int, int, str]:
        words = prefix.split(".")
        known = [i for i, w in enumerate(PREFERRED) if w in words]
        return (min(known, default=9) if prefix else -1, len(words), prefix)

    return sorted(found, key=order)


def _share(backbone: Backbone, state: Mapping[str, Tensor]) -> float:
    """Share of the backbone's numbers found in the right shape."""
    sizes = backbone.state_dict()
    total = sum(v.numel() for v in sizes.values())
    found = sum(
        v.numel() for k, v in sizes.items() if k in state and state[k].shape == v.shape
    )
    return found / total if total else 0.0
