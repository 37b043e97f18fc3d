"""Hundred Million: clusters of each modality by themselves, and labels where known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.data.box_map import BOXES
from homolog.data.card import Card
from homolog.geometry.affine import Index
from homolog.methods._base import Method
from homolog.methods._clusters import clustering_of, default_prototypes
from homolog.methods._hundred_classes import ClassHead, names_of
from homolog.methods._hundred_masks import MaskHead, masks_of
from homolog.methods._hundred_settings import RECIPES, HundredMillionConfig
from homolog.methods._multi_crop import multi_crop
from homolog.nn.clustering import shared_information
from homolog.nn.heads import Projector, pooled
from homolog.views.energy_bands import BandReference, band_energies, split_bands
from homolog.views.view import Intensity, View, Views, ViewSpec

if TYPE_CHECKING:
    from homolog.feed import CaseRef

# A modality of fewer scans gets no turn: one scan would fill a share of every batch.
_COMMON = 4
# Scans whose energies are measured.
_MEASURED = 100
# Classes of masks told by name.
_TOLD = 20


class HundredMillion(Method):
    """X-rays, CT, MR and PET in one network: crops of a sample share a cluster.

    As SwAV, but every modality has prototypes, queue and code assignment of its own and
    equally many samples in every batch, so that clusters are anatomy, not modality.
    Scans with a class, a label map or boxes also teach by them. Crops are changed as
    if by another scanner: the energies of their frequency bands are set near those of
    other scans. The same code takes slices through a 2D network and volumes through a
    3D one.

    ``usage`` is the entropy of the mean code in units of ln K, mean over modalities;
    ``information``, with clusters in common, the share of what the modality is that the
    cluster tells, over the last batches; ``mask_dice`` the Dice, on the grid of the
    masks' map, of the classes that the last batch shows.

    Source: Ghesu et al., "Self-supervised Learning from 100 Million Medical Images",
    arXiv 2201.01283.
    Differs from the paper: gentler zoom and gamma by default; crops overlap by default;
    references of energies are measured in the stores; masks teach by Dice and
    cross-entropy, boxes as masks (inside the class, outside background), which the
    paper leaves open; AdamW but in the recipe paper; queue and freeze are shares of the
    training; means, not means and maxima, of the deepest
    map of volumes; classes are told from features standardised between scans.
    """

    Config = HundredMillionConfig
    title: ClassVar[str] = "Hundred Million: clusters per modality"
    paper: ClassVar[str] = (
        "Ghesu et al., Self-supervised Learning from 100 Million Medical Images, "
        "arXiv 2201.01283"
    )
    uses_labels: ClassVar[bool] = True
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: HundredMillionConfig

    def __init__(self, backbone: Backbone, config: HundredMillionConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        if config.small_count:
            backbone.check_size(config.small_size)
        self.backbone = backbone
        self.projector = Projector(
            backbone.channels[-1], config.dim, hidden=config.hidden, norm="batch"
        )
        self.groups = max(1, len(self.turns()))
        apart = self.groups if config.clustering == "modality" else 1
        self.prototypes = config.prototypes or default_prototypes(config.queue_length)
        self.clusterings = nn.ModuleList(
            clustering_of(config, self.prototypes) for _ in range(apart)
        )
        self.classes: ClassHead | None = None
        if config.weight_classes > 0 and (
            len(config.class_names) > 1 or config.class_several
        ):
            self.classes = ClassHead(
                backbone.channels[-1],
                config.class_names,
                several=config.class_several,
            )
        self.masks: MaskHead | None = None
        if config.weight_masks > 0 and config.mask_rows:
            self.masks = MaskHead(
                backbone, config.mask_stride, len(config.mask_names), config.mask_rows
            )
        self._raw: dict[str, Tensor] = {}
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(self.groups, self.prototypes))

    @classmethod
    def settled(
        cls, settings: Mapping[str, Any], cases: Sequence[CaseRef]
    ) -> dict[str, Any]:
        """Modalities, classes, masks and energies of bands, as the stores have them."""
        found = dict(settings)
        if not found["modalities"]:
            counts = Counter(case.card.modality for case in cases)
            common = [name for name, n in counts.items() if n >= _COMMON]
            found["modalities"] = sorted(common or counts)
        if not found["class_names"] and found["weight_classes"] > 0:
            names, several = names_of([case.card.target for case in cases])
            found |= {"class_names": names, "class_several": several}
        if found["weight_masks"] > 0 and not found["mask_rows"]:
            found["mask_names"], found["mask_rows"] = masks_of(cases)
        if found["bands_probability"] > 0 and not found["bands_mean"]:
            energies = _measured(cases, found["size"], found["bands_sigmas"])
            found["bands_mean"] = energies.mean(0).tolist()
            found["bands_std"] = energies.std(0, correction=0).tolist()
        return found

    def turns(self) -> Sequence[str]:
        """Modalities, where there are several."""
        names = self.config.modalities
        return names if len(names) > 1 else ()

    def targets(self, cases: Sequence[CaseRef]) -> list[int] | list[list[float]] | None:
        """Classes of whole scans, where they count and there are two."""
        if self.classes is None:
            return None
        return self.classes.targets([case.card.target for case in cases])

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """Which modalities and classes it found."""
        told = []
        if self.turns():
            told.append(
                f"every batch holds equally many of {', '.join(self.turns())}; "
                + ("each has clusters of its own."
                   if len(self.clusterings) > 1 else "they share their clusters.")
            )  # fmt: skip
        if self.classes is not None:
            what = "findings" if self.classes.several else "classes"
            told.append(f"{what} that teach: {', '.join(self.classes.names)}.")
        for what, names in self._masked().items():
            more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
            told.append(f"{what} that teach: {', '.join(names[:_TOLD])}{more}.")
        return told

    def _masked(self) -> dict[str, list[str]]:
        """Kind of mask -> names of its classes."""
        found: dict[str, list[str]] = {}
        for _, value, number in self.config.mask_rows if self.masks else ():
            names = found.setdefault("boxes" if value > BOXES else "label maps", [])
            if self.config.mask_names[number - 1] not in names:
                names.append(self.config.mask_names[number - 1])
        return found

    def learns_from_labels(self, card: Card) -> bool:
        """Its class counts, or its label map or boxes do; its modality has a turn."""
        if self.turns() and card.modality not in self.turns():
            return False
        masked = self.masks is not None and (card.has_label or bool(card.boxes))
        known = self.classes is not None and self.classes.knows(card.target)
        return masked or known

    def rate_factors(self) -> Mapping[str, float]:
        """Prototypes learn at a rate of their own."""
        return {"clusterings.": self.config.prototype_rate}

    def views(self) -> dict[str, ViewSpec]:
        """Two large crops, with their masks where they teach, and small ones."""
        config = self.config
        p = config.intensity_probability
        reference = None
        if config.bands_probability > 0 and config.bands_mean:
            reference = BandReference(
                config.bands_sigmas, config.bands_mean, config.bands_std
            )
        intensity = Intensity(
            gamma=config.gamma, gamma_probability=p, scale=(0.9, 1.1),
            scale_probability=p, shift=(-0.2, 0.2), shift_probability=p,
            bands_probability=config.bands_probability if reference else 0.0,
            bands_reference=reference,
        )  # fmt: skip
        specs = multi_crop(config, intensity)
        if self.masks is not None:
            boxes = config.mask_names if "boxes" in self._masked() else ()
            specs["large"] = replace(specs["large"], labels=True, boxes=boxes)
        return specs

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``clusters``, mean over modalities; ``classes`` and ``masks`` of some."""
        config = self.config
        maps = {name: self.backbone.maps(view.flat()) for name, view in views.items()}
        vectors = [
            pooled(maps[name][-1]).reshape(*view.image.shape[:2], -1)
            for name, view in views.items()
        ]
        if len(vectors[0]) % self.groups:
            raise ValueError(
                f"a batch of {len(vectors[0])} samples cannot be shared by "
                f"{self.groups} modalities."
            )
        features = [one for v in vectors for one in self.projected(v).unbind(1)]
        self.watch("features", features[0])
        apart = len(self.clusterings)
        terms = [
            clustering(
                [view[group::apart] for view in features],
                frozen=progress < config.freeze,
                queued=progress >= config.queue_start,
            )
            for group, clustering in enumerate(self.clusterings)
        ]
        self._count(features[0].detach())
        found = {"clusters": config.weight_clusters * torch.stack(terms).mean()}
        if self.classes is not None:
            target = views["large"].target
            assert target is not None
            found["classes"] = config.weight_classes * self._class_error(
                vectors[0], target
            )
        if self.masks is not None:
            found["masks"] = config.weight_masks * self._mask_error(
                maps["large"], views["large"]
            )
        return found

    def _mask_error(self, maps: Sequence[Tensor], view: View) -> Tensor:
        """Dice plus cross-entropy of the large crops of scans with masks."""
        assert self.masks is not None
        found = self.masks(maps, view)
        self._raw["mask_dice"] = found["dice"]
        error: Tensor = found["error"]
        return error * found["labelled"] if self.config.strict else error

    def projected(self, vectors: Tensor) -> Tensor:
        """(B, V, E) -> (B, V, dim), unit length; of each modality by itself.

        The norm within looks at the batch: one modality is to know nothing of another.
        """
        apart = len(self.clusterings)
        parts = [self.projector(vectors[group::apart]) for group in range(apart)]
        return torch.stack(parts, dim=1).flatten(0, 1)

    def _class_error(self, vectors: Tensor, target: Tensor) -> Tensor:
        """Error of the large crops of samples whose class is known."""
        assert self.classes is not None
        found: dict[str, Tensor] = self.classes(vectors, target)
        self._raw["class_accuracy"] = found["accuracy"]
        divisor = found["labelled"].clamp_min(1)
        return found["total"] / (len(target) if self.config.strict else divisor)

    @torch.no_grad()
    def _count(self, features: Tensor) -> None:
        """How often samples of each modality fall to each common prototype."""
        if len(self.clusterings) > 1 or not self.training:
            return
        nearest = self.clusterings[0].scores(features).argmax(1)  # type: ignore[operator]
        hits = nn.functional.one_hot(nearest, self.prototypes).float()
        groups = hits.unflatten(0, (-1, self.groups)).mean(0)  # type: ignore[no-untyped-call]
        self._raw["hits"] = groups

    def after_step(self, progress: float) -> None:
        """Fill the queues and the counts."""
        for clustering in self.clusterings:
            clustering.after_step()  # type: ignore[operator]
        hits = self._raw.pop("hits", None)
        if hits is not None:
            self.seen.mul_(0.95).add_(hits)

    def encoder(self) -> Backbone:
        """The trained backbone; projector, prototypes and heads are dropped."""
        return self.backbone

    @property
    def trivial(self) -> dict[str, float]:
        """Ln K and ln of the number of classes: every prediction uniform.

        Masks have none: what a uniform prediction costs depends on how much is marked.
        """
        found = {"clusters": math.log(self.prototypes)}
        if self.classes is not None:
            found["classes"] = self.classes.trivial
        return found

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Spread of features, use of clusters, what clusters tell of modalities."""
        usage = [c.usage() for c in self.clusterings]  # type: ignore[operator]
        found = {**super().monitors(), "usage": torch.stack(usage).mean()}
        if self.groups > 1 and len(self.clusterings) == 1:
            found["information"] = shared_information(self.seen)
        told = ("class_accuracy", "mask_dice")
        return {**found, **{k: v for k, v in self._raw.items() if k in told}}


def _measured(
    cases: Sequence[CaseRef], size: Sequence[int], sigmas: Sequence[float]
) -> Tensor:
    """(N, S + 1) energies of the middle of up to 100 scans, normalised values."""
    step = max(1, len(cases) // _MEASURED)
    found = []
    for case in cases[::step]:
        shape = case.card.shape
        start = [max(0, (n - s) // 2) for n, s in zip(shape, size, strict=True)]
        key = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        card = case.card
        stored = case.store.image(card.id)[(slice(0, 1), *key)]
        value = torch.from_numpy(
            card.intensity.normalise(stored * np.float32(card.scale) + card.offset)
        )
        found.append(band_energies(split_bands(value, tuple(sigmas)))[:, 0])
    return torch.stack(found)
