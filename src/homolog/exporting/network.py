"""A trained network as one module that others can run, and how far it may be moved."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import to_dict
from homolog.errors import JobError, UnusableInput
from homolog.exporting.kinds import why_not
from homolog.exporting.told import public_card
from homolog.geometry.affine import Index
from homolog.model_files.card import CARD, read_card
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import find_model
from homolog.tasks.base import Task, Trained
from homolog.tasks.segment.network import (
    is_slicewise,
    model_preprocessing,
    smallest_window,
)
from homolog.use.predict import open_predictor

# Largest difference of one window's answers, by their largest value, that is rounding.
ROUNDING = 1e-3
IMAGE = "image"


@dataclass(frozen=True, eq=False)
class Source:
    """What is exported.

    Attributes:
        network: (B, C, D, H, W) -> logits, values or a tuple of maps; on the CPU.
        kind: ``encoder``, ``segment``, ``classify``, ``translate``.
        card: Without paths of this machine.
        channels: Of the image.
        window: A legal one (D, H, W), that of training where it is known.
        outputs: Name of each output.
        task: And ``model``: of a fine-tuned one.
        model: See ``task``.
    """

    network: nn.Module
    kind: str
    card: dict[str, Any]
    channels: int
    window: Index
    outputs: tuple[str, ...]
    task: Task | None = None
    model: Trained | None = None

    @property
    def encoder(self) -> Backbone:
        """Tells which sizes are legal."""
        found = self.network.encoder
        assert isinstance(found, Backbone)
        return found


class EncoderMaps(nn.Module):
    """An encoder's feature maps, with a depth axis whatever the network is.

    Args:
        encoder: 3D, or 2D for images of one slice.
    """

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> (B, E_i, d_i, h_i, w_i), fine to coarse."""
        return self.encoder.maps(image)


def open_source(source: Path, kind: str) -> Source:
    """A run or model folder, ready to be written as ``kind``.

    Raises:
        UnusableInput: No model there, a weight file, or a model without one network.
    """
    if source.is_file() and not (source.parent / CARD).is_file():
        raise UnusableInput(
            f"{source} is a weight file; make a model of it first: homolog models "
            f"import {source.name} --out DIR"
        )
    card = read_card(find_model(source))
    told = str(card.get("kind") or "")
    if reason := why_not(card, kind):
        raise UnusableInput(f"{source} ({told}) cannot be written as {kind}: {reason}.")
    if not card.get("task_spec"):
        return _encoder(source)
    task, model = open_predictor(source, torch.device("cpu"))
    spec = model.spec
    d, h, w = spec["window"]
    outputs = {"classify": "scores", "translate": "values"}.get(told, "logits")
    return Source(
        network=model.network,
        kind=told,
        card=public_card(model.card),
        channels=int(spec.get("channels", 1)),
        window=(int(d), int(h), int(w)),
        outputs=(outputs,),
        task=task,
        model=model,
    )


def _encoder(source: Path) -> Source:
    loaded = load_encoder(source)
    backbone = loaded.backbone.requires_grad_(False)
    least = smallest_window(backbone)
    told = loaded.card.get("window")
    window = least
    if told and not any(
        n % m for n, m in zip(told, backbone.size_divisor, strict=True)
    ):
        window = (int(told[0]), int(told[1]), int(told[2]))
    if backbone.spatial_dims == 2:
        window = (1, *window[1:])
    card = {**public_card(loaded.card), "encoder_id": loaded.encoder_id}
    return Source(
        network=EncoderMaps(backbone).eval(),
        kind="encoder",
        card=card,
        channels=backbone.config.in_channels,
        window=window,
        outputs=tuple(f"map{i}" for i in range(len(backbone.channels))),
    )


@dataclass(frozen=True)
class Sides:
    """Which windows an exported network takes.

    Attributes:
        free: Whether other sides than the exported ones give equal numbers.
        batch: Whether several windows at once do.
        difference: Largest difference of a random window, by the largest answer.
    """

    free: bool
    batch: bool
    difference: float

    @property
    def words(self) -> str:
        """``any`` or ``fixed``, as recipes have it."""
        return "any" if self.free else "fixed"


def as_outputs(answer: Any) -> tuple[Tensor, ...]:
    """One tensor or several."""
    return (answer,) if isinstance(answer, Tensor) else tuple(answer)


def random_window(source: Source, window: Index, batch: int = 1) -> Tensor:
    """(batch, C, *window) of noise, the same every time."""
    noise = torch.Generator().manual_seed(0)
    return torch.randn((batch, source.channels, *window), generator=noise)


def other_window(source: Source) -> Index | None:
    """A legal window of other sides; None where the network takes no other."""
    encoder, window = source.encoder, source.window
    alone = encoder.spatial_dims == 2 and not _is_stack(source)
    sides = [n + m for n, m in zip(window, encoder.size_divisor, strict=True)]
    wanted = (1 if alone else sides[0], sides[1], window[2])
    try:
        with torch.no_grad():
            source.network(random_window(source, wanted))
    except (ValueError, RuntimeError, AssertionError):
        return None
    return wanted


def _is_stack(source: Source) -> bool:
    """Whether a 2D network takes volumes, slice by slice."""
    sliced = source.model is not None and is_slicewise(source.model)
    return sliced or source.window[0] > 1


@torch.no_grad()
def traced(source: Source) -> tuple[torch.jit.ScriptModule, Sides]:
    """The network as TorchScript, compared with itself.

    Raises:
        UnusableInput: It cannot be traced.
        JobError: What was traced answers otherwise than the network.
    """
    example = random_window(source, source.window)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what depends on sizes is measured below
            script: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
                source.network, example, check_trace=False
            )
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        first = str(error).strip().split("\n")[0]
        raise UnusableInput(f"this network cannot be traced ({first}).") from error
    difference = differs(source, script, source.window)
    if not difference <= ROUNDING:
        raise JobError(
            f"the traced network differs from the model by {difference:.2g} of its "
            "largest answer; nothing was written."
        )
    other = other_window(source)
    free = other is not None and differs(source, script, other) <= ROUNDING
    batch = differs(source, script, source.window, batch=2) <= ROUNDING
    return script, Sides(free, batch, difference)


@torch.no_grad()
def differs(source: Source, run: Any, window: Index, batch: int = 1) -> float:
    """Largest difference from the model's answer to noise, by its largest answer.

    Infinite where ``run`` fails or answers in another shape.

    Args:
        source: The model.
        run: Image -> tensor or tensors.
        window: Sides of the noise.
        batch: How many of them.
    """
    image = random_window(source, window, batch)
    wanted = as_outputs(source.network(image))
    try:
        found = as_outputs(run(image))
    except Exception:  # noqa: BLE001 - whatever another program raises
        return float("inf")
    if [w.shape for w in wanted] != [f.shape for f in found]:
        return float("inf")
    pairs = zip(wanted, found, strict=True)
    return max(
        float((w - f).abs().max()) / max(float(w.abs().max()), 1e-6) for w, f in pairs
    )


def scan_recipe(source: Source, sides: Sides) -> dict[str, Any]:
    """What prepares scans for the network and takes its answers, JSON types.

    Of a fine-tuned model; read by ``homolog_scan.py``.
    """
    model = source.model
    assert model is not None
    spec: Mapping[str, Any] = model.spec
    how = to_dict(model_preprocessing(model))
    kinds = list(spec.get("channel_modalities") or ())
    known = [m for m in spec["modalities"] if m != "OTHER"]
    modality = how.pop("modality", None) or (known[0] if len(known) == 1 else None)
    follow = getattr(source.network.encoder, "free_divisor", None)
    learnt = model.learnt
    return {
        "format": 1,
        "kind": source.kind,
        "channels": source.channels,
        "channel_names": list(spec.get("channel_names", ())),
        "channel_modalities": kinds if len(kinds) == source.channels > 1 else [],
        "modality": modality,
        "modalities": list(spec["modalities"]),
        "preprocessing": how,
        "learnt_spacing_mm": learnt.spacing and learnt.spacing.to_dict(),
        "scanned_spacing_mm": learnt.scanned and learnt.scanned.to_dict(),
        "window": list(source.window),
        "sides": sides.words,
        "divisor": list(spec["divisor"]),
        "smallest": list(spec["smallest"]),
        "follow": list(follow) if follow and sides.free else None,
        "overlap": float(spec["overlap"]),
        "slicewise": bool(spec.get("slicewise", False)),
        "label_values": list(spec["label_values"]),
        "label_names": {"0": "background", **spec["label_names"]},
        "masks": masks_of(spec, source.channels),
    }


def masks_of(spec: Mapping[str, Any], channels: int) -> list[bool]:
    """Which channels mark places rather than showing anything, by their names."""
    from homolog.scans.volume import Channel

    names = [*spec.get("channel_names", ()), *("" for _ in range(channels))]
    return [bool(name) and Channel(Path(), name).is_mask for name in names[:channels]]
