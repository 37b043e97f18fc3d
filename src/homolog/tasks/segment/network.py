"""The segmentation network, and how it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import from_dict
from homolog.errors import UnusableInput
from homolog.events import Job
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Index, Triple
from homolog.geometry.anisotropy import thick_axis
from homolog.label_names import (
    has_name,
    join_labels,
    key_of,
    name_between_stores,
    refuse_ignored,
    store_titles,
)
from homolog.losses.segmentation import (
    at_scale,
    dice_cross_entropy,
    scale_weights,
)
from homolog.nn.decoders import Decoder
from homolog.scans.volume import Volume
from homolog.sliding.blending import slices_at_once
from homolog.sliding.sliding import SlidingResult, slide
from homolog.sliding.windows import SlidingConfig
from homolog.store.preprocess import (
    ChannelLevels,
    Prepared,
    Preprocessing,
    preparation_notes,
    prepare_volume,
)
from homolog.store.store import Store
from homolog.tasks.base import TaskModule, Trained
from homolog.views.view import Views, ViewSpec

# Labels of several data sets as classes of one model.
#
# Each store names its own labels; ``homolog.label_names`` says how they are
# joined. What a store does not annotate may still be there, unlabelled: the loss must
# not call it background.


@dataclass(frozen=True)
class LabelSpace:
    """What the labels of one store are in the model.

    Attributes:
        store: Name of its folder.
        store_hash: Its hash.
        values: Value in the store -> value in the model, without background.
    """

    store: str
    store_hash: str
    values: Mapping[int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "store": self.store,
            "store_hash": self.store_hash,
            "values": {str(k): v for k, v in self.values.items()},
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> LabelSpace:
        """Inverse of ``to_dict``."""
        values = {int(k): int(v) for k, v in told["values"].items()}
        return cls(str(told["store"]), str(told["store_hash"]), values)


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: Value in the model -> name, without background.
        spaces: One per store, in the order of the cases; empty for a single store,
            whose values are the model's.
    """

    names: Mapping[int, str]
    spaces: tuple[LabelSpace, ...] = ()


def classes_of(cases: Sequence[CaseRef]) -> Classes:
    """The classes that cases of one or several stores annotate, see ``join_labels``.

    Args:
        cases: Labelled; stores in the order of their first case.
    """
    stores: dict[Path, Store] = {}
    found: dict[Path, set[int]] = {}
    for case in cases:
        stores.setdefault(case.store.path, case.store)
        found.setdefault(case.store.path, set()).update(case.card.label_values)
    for path, store in stores.items():
        refuse_ignored(path, store.label_names)
    titles = store_titles(list(stores))
    named = [
        {v: store.label_names.get(v, "") for v in found[path]}
        for path, store in stores.items()
    ]
    joined = join_labels(list(zip(titles, named, strict=True)))
    if len(stores) == 1:
        return Classes(joined.names)
    parts = zip(titles, stores.values(), joined.values, strict=True)
    spaces = (LabelSpace(title, s.hash, values) for title, s, values in parts)
    return Classes(joined.names, tuple(spaces))


def space_of(
    store: Store, spec: Mapping[str, Any], learnt_from: str = ""
) -> LabelSpace | None:
    """What the labels of a store are in a model; None where they are the model's own.

    A store the model did not learn from is understood by the names of its labels.

    Args:
        store: Of the case looked at.
        spec: Of the model.
        learnt_from: Hash of the one store it learnt from, where there was one.

    Raises:
        UnusableInput: Store and model name their labels, and none alike.
    """
    if not spec.get("label_spaces"):
        return None if store.hash == learnt_from else _by_name(store, spec)
    spaces = [LabelSpace.from_dict(told) for told in spec["label_spaces"]]
    for space in spaces:
        if space.store_hash == store.hash:
            return space
    known = {n.strip().casefold(): int(v) for v, n in spec["label_names"].items()}
    title = store.path.name
    own = {
        value: name_between_stores(value, name, title).strip().casefold()
        for value, name in store.label_names.items()
    }
    values = {value: known[name] for value, name in own.items() if name in known}
    return LabelSpace(title, store.hash, values)


def _by_name(store: Store, spec: Mapping[str, Any]) -> LabelSpace | None:
    """As ``space_of``, of a model that learnt from one store."""
    model = {int(v): str(n) for v, n in spec["label_names"].items()}
    known = {key_of(n): v for v, n in model.items() if has_name(v, n)}
    values: dict[int, int] = {}
    for value, name in store.label_names.items():
        if not has_name(value, name) or not known:
            values[value] = value  # nothing but the number tells
        elif key_of(name) in known:
            values[value] = known[key_of(name)]
        elif value in model and not has_name(value, model[value]):
            values[value] = value
    values = {v: own for v, own in values.items() if own in model}
    if values == {v: v for v in store.label_names if v in model}:
        return None
    if not values:
        raise UnusableInput(
            f"the labels of {store.path} ({', '.join(store.label_names.values())}) are "
            f"none of the model's ({', '.join(model.values())}); if they are the same, "
            "prepare the store with --names VALUE=NAME."
        )
    return LabelSpace(store.path.name, store.hash, values)


def in_model(labels: NDArray[np.int16], space: LabelSpace | None) -> NDArray[np.int16]:
    """A store's label map in the model's values; labels it does not know become 0."""
    if space is None:
        return labels
    top = max([int(labels.max(initial=0)), *space.values], default=0)
    table = np.zeros(top + 2, np.int16)
    table[-1] = -1  # unlabelled stays so
    for value, own in space.values.items():
        table[value] = own
    mapped: NDArray[np.int16] = table[np.where(labels < 0, top + 1, labels)]
    return mapped


def annotated(space: LabelSpace | None, values: Sequence[int]) -> list[int]:
    """Which of the model's values a store annotates."""
    if space is None:
        return list(values)
    known = set(space.values.values())
    return [v for v in values if v in known]


def spaces_note(classes: Classes) -> str:
    """Which class is annotated where, for people; empty where all annotate all."""
    all_of_them = set(classes.names)
    if all(set(space.values.values()) >= all_of_them for space in classes.spaces):
        return ""
    lines = []
    for value, name in classes.names.items():
        having = [s.store for s in classes.spaces if value in s.values.values()]
        lines.append(f"{name} ({', '.join(having)})")
    return (
        f"{len(classes.spaces)} data sets, {len(classes.names)} classes: "
        f"{'; '.join(lines)}. Where a data set does not annotate a class, its voxels "
        "may be that class or background."
    )


# Paper: S2DC segmentation.
class SegmentNetwork(nn.Module):
    """An encoder with a decoder of its kind.

    A 2D encoder makes a 2D U-Net: the slices of a volume become the batch and what
    comes out is stacked again, so that no slice knows of another.

    Args:
        encoder: 3D or 2D backbone.
        decoder: With ``features(image, maps)`` -> (B, F, D, H, W) and ``head``, a
            1 x 1 x 1 convolution from F to K; for a 2D encoder without D.

    Source: Nguyen et al., Joint Self-Supervised Image-Volume Representation Learning,
        AAAI 2023, downstream tasks ("predict segmentation at each 2D slice and merge
        results for 3D volumes").
    """

    def __init__(self, encoder: Backbone, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @property
    def slicewise(self) -> bool:
        """Whether every slice goes through alone.

        Differs from the paper: AdamW but in the recipe ``joint``, where Joint has SGD.

        Paper: Joint 2D U-Net.
        """
        return self.encoder.spatial_dims == 2

    @property
    def head(self) -> nn.Module:
        """The decoder's last layer, features to logits."""
        head: nn.Module = self.decoder.head  # type: ignore[assignment]
        return head

    def features(self, image: Tensor) -> Tensor:
        """Normalised intensities (B, C, D, H, W) -> (B, F, D, H, W)."""
        return self._stacked(self._features(self._seen(image)), image.shape[0])

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, K, D, H, W) logits."""
        logits: Tensor = self.head(self._features(self._seen(image)))
        return self._stacked(logits, image.shape[0])

    def stages(self, image: Tensor) -> list[Tensor]:
        """Features of the decoder's stages, coarse to fine, (B, F_i, d_i, h_i, w_i)."""
        seen = self._seen(image)
        decoder = self.decoder
        assert isinstance(decoder, Decoder)
        found = decoder.stages(seen, self.encoder(seen))
        return [self._stacked(features, image.shape[0]) for features in found]

    def answer(self, head: nn.Module, features: Tensor) -> Tensor:
        """A 1 x 1 x 1 convolution of the decoder's kind on (B, F, D, H, W)."""
        return self._stacked(head(self._seen(features)), features.shape[0])

    def _features(self, image: Tensor) -> Tensor:
        """Of what the encoder takes: volumes, or slices."""
        maps = self.encoder(image)
        features: Tensor = self.decoder.features(image, maps)  # type: ignore[operator]
        return features

    def _seen(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B * D, C, H, W) where slices go through alone."""
        return image.transpose(1, 2).flatten(0, 1) if self.slicewise else image

    def _stacked(self, found: Tensor, count: int) -> Tensor:
        """(B * D, F, H, W) -> (B, F, D, H, W) where slices went through alone."""
        if not self.slicewise:
            return found
        return found.reshape(count, -1, *found.shape[1:]).transpose(1, 2)


class JoinedSegmenters(nn.Module):
    """Several segmentation networks of the same labels; the mean of their logits.

    Args:
        networks: SegmentNetworks that take the same windows.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    @property
    def encoder(self) -> nn.Module:
        """The first one's: it says which windows are legal."""
        encoder: nn.Module = self.members[0].encoder  # type: ignore[assignment]
        return encoder

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, K, D, H, W) logits."""
        total: Tensor = self.members[0](image).float()
        for network in list(self.members)[1:]:
            total = total + network(image).float()
        return total / len(self.members)


class SegmentModule(TaskModule):
    """Dice plus cross-entropy on label-balanced crops.

    Args:
        network: What learns.
        spec: The crops.
        label_values: Value of each class in the model, background first.
        spaces: What the labels of each store are in the model, in the order of the
            feed's label spaces; none where they are the model's own.
        average: Momentum of the weight average; 0 keeps none. It helps while the rate
            is high (10 % of the hippocampus labels, 0.98: validation Dice 0.850 against
            0.828 after 250 of 1000 steps), not at the end (0.871 against 0.873).
        deep: Coarser stages of the decoder answer, too, each by a layer of its own that
            is no part of the network: see ``scale_weights``.
    """

    network: SegmentNetwork

    def __init__(
        self,
        network: SegmentNetwork,
        spec: ViewSpec,
        label_values: Sequence[int],
        *,
        average: float = 0.0,
        spaces: Sequence[LabelSpace] = (),
        deep: bool = False,
    ) -> None:
        super().__init__(network, average)
        self.coarse = _coarse_heads(network, len(label_values)) if deep else None
        self.spec = spec
        mappings = [s.values for s in spaces] or [{v: v for v in label_values if v > 0}]
        # Row: label space. Column v + 1: class of value v; -1 stays unlabelled.
        top = max(v for mapping in mappings for v in (0, *mapping))
        number = {value: index for index, value in enumerate(label_values)}
        unknown = 0 if spaces else -1
        table = torch.full((len(mappings), top + 2), unknown, dtype=torch.int64)
        table[:, 0], table[:, 1] = -1, 0
        annotated = torch.zeros(len(mappings), len(label_values), dtype=torch.bool)
        annotated[:, 0] = True
        for row, mapping in enumerate(mappings):
            for value, own in mapping.items():
                table[row, value + 1] = number[own]
                annotated[row, number[own]] = True
        self.partial = bool(spaces)
        self.register_buffer("classes", table, persistent=False)
        self.register_buffer("annotated", annotated, persistent=False)

    def views(self) -> dict[str, ViewSpec]:
        """One crop with its labels."""
        return {"crop": self.spec}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``dice`` and ``cross_entropy``."""
        crop = views["crop"]
        assert crop.label is not None
        table: Tensor = self.classes  # type: ignore[assignment]
        known: Tensor = self.annotated  # type: ignore[assignment]
        column = (crop.label.flatten(0, 1) + 1).clamp(0, table.shape[1] - 1)
        annotated = None
        row = torch.zeros(len(column), dtype=torch.int64, device=column.device)
        if self.partial:
            assert crop.label_space is not None
            row = crop.label_space.repeat_interleave(crop.image.shape[1])
            annotated = known[row]
        target = table[row[:, None, None, None], column]
        answers = self._answers(crop.flat())
        dice = cross_entropy = target.new_zeros((), dtype=torch.float32)
        for weight, logits in zip(scale_weights(len(answers)), answers, strict=True):
            if weight == 0.0:
                continue
            size = logits.shape[2:]
            wanted = target if size == target.shape[1:] else at_scale(target, size)
            with torch.autocast(logits.device.type, enabled=False):
                overlap, entropy = dice_cross_entropy(
                    logits, wanted, annotated, together=self.network.slicewise
                )
            dice = dice + weight * overlap
            cross_entropy = cross_entropy + weight * entropy
        return {"dice": dice, "cross_entropy": cross_entropy}

    def _answers(self, image: Tensor) -> list[Tensor]:
        """(B, K, d_i, h_i, w_i) logits, the full resolution first."""
        if self.coarse is None:
            return [self.network(image)]
        *coarse, fine = self.network.stages(image)
        answers = [self.network.answer(self.network.head, fine)]
        # the coarsest has no head: it has no weight
        for head, features in zip(self.coarse, coarse[:0:-1], strict=True):
            answers.append(self.network.answer(head, features))
        return [*answers, *coarse[:1]]


def _coarse_heads(network: SegmentNetwork, classes: int) -> nn.ModuleList:
    """A layer for every stage but the full resolution and the coarsest, fine first."""
    decoder = network.decoder
    assert isinstance(decoder, Decoder)
    layer = nn.Conv2d if network.slicewise else nn.Conv3d
    return nn.ModuleList(
        layer(channels, classes, 1) for channels in decoder.stage_channels[-2:0:-1]
    )


def choose_window(
    shapes: Sequence[Index],
    divisor: Index,
    smallest: Index,
    *,
    side: int,
    voxels: int,
    spacing_mm: Triple | None = None,
) -> Index:
    """A window about as large as the median scan, where that is affordable.

    Rounded to the nearest multiple: what a window reaches beyond the scan is computed
    for nothing (on hippocampus crops of 35 x 50 x 35 voxels, 48 x 64 x 48 takes three
    times as long a step as 32 x 48 x 32 and learns slower per minute).

    Args:
        shapes: Sizes of the scans (D, H, W).
        divisor: What every side must be a multiple of.
        smallest: No side is shorter.
        side: No side is longer.
        voxels: No window has more voxels, as far as ``smallest`` allows.
        spacing_mm: Voxel size (z, y, x). Where slices are at least twice as thick as
            pixels are wide, lengths are compared in mm and ``side`` counts slices.

    Returns:
        (D, H, W), multiples of the divisor.
    """
    median = [sorted(s[a] for s in shapes)[len(shapes) // 2] for a in range(3)]
    long = (1.0, 1.0, 1.0)
    if spacing_mm is not None and thick_axis(spacing_mm, 2.0) is not None:
        long = spacing_mm
    sides = [int(side * max(long) / mm) for mm in long]
    window = [
        max(min(round(n / m), most // m) * m, least)
        for n, m, least, most in zip(median, divisor, smallest, sides, strict=True)
    ]
    while window[0] * window[1] * window[2] > voxels:
        # shorten the longest side that can be shortened
        longest = max(
            (a for a in range(3) if window[a] - divisor[a] >= smallest[a]),
            key=lambda a: window[a] * long[a],
            default=None,
        )
        if longest is None:
            break
        window[longest] -= divisor[longest]
    return window[0], window[1], window[2]


def smallest_window(backbone: Backbone) -> Index:
    """Sides with two cells of the coarsest map: one cell alone has no variance.

    One slice where the backbone is 2D.
    """
    d, h, w = (
        (stride // m + 1) * m
        for stride, m in zip(backbone.strides[-1], backbone.size_divisor, strict=True)
    )
    return (1 if backbone.spatial_dims == 2 else d), h, w


def spec_index(spec: Mapping[str, Any], key: str) -> Index:
    """A (D, H, W) triple of a spec that went through JSON."""
    d, h, w = spec[key]
    return int(d), int(h), int(w)


# A segmentation network on prepared voxels: the one way from int16 to labels.


# Voxels of the slices that go through a slice-wise network together.
SLICES_VOXELS = {"cpu": 80**3, "cuda": 128**3}


class Levels(Protocol):
    """What stored numbers mean; a Card and a Prepared are such."""

    @property
    def levels(self) -> tuple[ChannelLevels, ...]:
        """Of each channel."""
        ...


def label_stored(
    model: Trained,
    data: NDArray[np.int16],
    levels: Levels,
    *,
    flips: Sequence[int] = (),
    overlap: float | None = None,
    windows: str | None = None,
) -> Job[SlidingResult | None]:
    """Class indices of every voxel of a prepared scan.

    Args:
        model: A trained segmentation network.
        data: (C, D, H, W) int16 as the store keeps it.
        levels: The scan's card or what ``prepare_volume`` made.
        flips: Axes whose mirrorings are averaged.
        overlap: Of neighbouring windows; None takes the model's.
        windows: ``scan``: a scan that is not much larger than the window of training
            is one window, where the network takes any size; ``trained``: that of
            training, always; None: ``scan``.

    Returns:
        Labels as class indices; None when told to stop.
    """
    spec = model.spec
    window, slicewise = spec_index(spec, "window"), is_slicewise(model)
    if slicewise:
        kind = model.device.type
        voxels = SLICES_VOXELS.get(kind, SLICES_VOXELS["cuda"])
        window = slices_at_once(data.shape[1], window, voxels), *window[1:]
    config = SlidingConfig(
        window=window,
        divisor=spec_index(spec, "divisor"),
        smallest=spec_index(spec, "smallest"),
        overlap=spec["overlap"] if overlap is None else overlap,
        slicewise=slicewise,
        batch=None,
        flips=useful_flips(model, flips),
        fill=tuple(one.fill for one in levels.levels),
        precision=model.precision,
        follow=None if slicewise or windows == "trained" else _free_divisor(model),
    )
    result = yield from slide(
        model.network,
        torch.from_numpy(np.ascontiguousarray(data)),
        classes=len(spec["label_values"]),
        config=config,
        device=model.device,
        normalise=Normalise(levels.levels, model.device),
    )
    return result


def _free_divisor(model: Trained) -> Index | None:
    """See ``Backbone.free_divisor``."""
    found: Index | None = getattr(
        getattr(model.network, "encoder", None), "free_divisor", None
    )
    return found


def is_slicewise(model: Trained) -> bool:
    """Whether the network labels every slice across z by itself."""
    return bool(model.spec.get("slicewise", False))


def useful_flips(model: Trained, flips: Sequence[int]) -> tuple[int, ...]:
    """The axes whose mirroring the network notices: slices do not know their order."""
    slicewise = is_slicewise(model)
    return tuple(axis for axis in flips if axis > 0 or not slicewise)


def as_label_values(
    classes: Tensor | NDArray[Any], spec: Mapping[str, Any]
) -> NDArray[np.int32]:
    """Class indices -> the values the label maps use."""
    table = np.asarray(spec["label_values"], dtype=np.int32)
    values: NDArray[np.int32] = table[np.asarray(classes)]
    return values


class Normalise:
    """Stored windows (B, C, ...) -> network input, by the feed's own formula.

    Args:
        levels: Of the channels.
        device: Where the windows lie.
    """

    def __init__(self, levels: Sequence[ChannelLevels], device: torch.device) -> None:
        self.gain, self.bias, self.low, self.high = (
            torch.tensor(
                [getattr(one, name) for one in levels], dtype=torch.float32
            ).to(device, non_blocking=True)[:, None, None, None]
            for name in ("gain", "bias", "low", "high")
        )

    def __call__(self, stored: Tensor) -> Tensor:
        """Stored numbers, any type -> float32."""
        seen = stored.float() * self.gain + self.bias
        return torch.clamp(seen, min=self.low, max=self.high)


def model_preprocessing(model: Trained, modality: str | None = None) -> Preprocessing:
    """The recipe of the scans the model learnt from.

    Args:
        model: With its card.
        modality: Take scans for this modality, whatever their files say.
    """
    recipe = from_dict(
        Preprocessing, model.card.get("preprocessing", {}), where="model.json"
    )
    return recipe if modality is None else replace(recipe, modality=modality)


def prepared_for(
    model: Trained, volume: Volume, modality: str | None = None
) -> Job[Prepared]:
    """A scan as the model learnt to see scans; says what had to be done to it.

    Args:
        model: With its card and the voxel size it learnt at.
        volume: A scan as stored in its file.
        modality: Take it for this one, whatever its file says.

    Raises:
        UnusableInput: Another modality or number of channels than learnt from.
    """
    check_scan(model, volume, modality)
    recipe = model_preprocessing(model, modality)
    prepared = prepare_volume(volume, recipe, model.learnt)
    yield from preparation_notes(volume, prepared, named_size=recipe.spacing_mm)
    return prepared


def channels_spec(cases: Sequence[CaseRef]) -> dict[str, Any]:
    """What a model must remember of the channels of its cases, JSON types."""
    levels = cases[0].card.levels
    spec: dict[str, Any] = {"channels": len(levels)}
    if len(levels) > 1:
        spec["channel_names"] = [one.name for one in levels]
        spec["channel_modalities"] = [one.modality for one in levels]
    return spec


def check_scan(model: Trained, volume: Volume, modality: str | None = None) -> None:
    """Refuse a scan whose intensities mean something else than those learnt from.

    Args:
        model: With its spec.
        volume: The scan; a modality of OTHER (the file does not say) passes.
        modality: What the user says the scan is, whatever its file says.

    Raises:
        UnusableInput: Another number of channels, or another known modality.
    """
    channels = int(model.spec["channels"])
    if volume.data.shape[0] != channels:
        raise UnusableInput(
            f"the model takes {channels} channels, {volume.name!r} has "
            f"{volume.data.shape[0]}."
        )
    known = [m for m in model.spec["modalities"] if m != "OTHER"]
    own = modality or volume.modality
    if known and own != "OTHER" and own not in known:
        raise UnusableInput(
            f"the model learnt from {', '.join(known)}, but {volume.name!r} is {own}; "
            f"if the file is mistaken, say --modality {known[0]}."
        )


def smallest_integers(labels: NDArray[Any]) -> NDArray[Any]:
    """The same labels in the smallest integer type that holds them."""
    highest = int(labels.max(initial=0))
    kind = np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int32
    return labels.astype(kind)
