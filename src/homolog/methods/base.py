"""The contract of a pretraining method. The training loop knows nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import option
from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder
from homolog.recipes import PaperScans, Sources
from homolog.views.view import Phase, Views, ViewSpec

# In the place of a map's index: the features of the decoder.
DENSE = -1


class CaseCard(Protocol):
    """What is known of a case without reading its scan; see homolog.store.card.Card."""

    @property
    def id(self) -> str:
        """Its name, unique in its store."""

    @property
    def shape(self) -> Index:
        """Voxels (D, H, W)."""

    @property
    def modality(self) -> str:
        """``CT``, ``MR``, ..."""

    @property
    def target(self) -> str | None:
        """Class of the whole scan, where it is known; several as ``a|b``."""

    @property
    def has_label(self) -> bool:
        """Whether there is a label map."""

    @property
    def label_values(self) -> tuple[int, ...]:
        """Those in its label map, without background."""

    @property
    def boxes(self) -> tuple[dict[str, Any], ...]:
        """Boxes of findings."""

    @property
    def scale(self) -> float:
        """Value units per stored step."""

    @property
    def offset(self) -> float:
        """Value of a stored 0."""

    @property
    def intensity(self) -> Any:
        """``normalise`` makes what a network sees of values."""


class CaseStore(Protocol):
    """Where a case lies; see homolog.store.store.Store."""

    path: Path
    label_names: dict[int, str]

    def image(self, case_id: str, /) -> Any:
        """Stored numbers (C, D, H, W), read by slicing."""


class Case(Protocol):
    """A scan that is learnt from; see homolog.feed.reading.CaseRef."""

    @property
    def store(self) -> CaseStore:
        """Where it lies."""

    @property
    def card(self) -> CaseCard:
        """What is known of it."""


@dataclass(frozen=True)
class CropConfig:
    """Settings of the crops that nearly every method looks at.

    A method's own configuration extends it; where a default or a limit is another one,
    it says so by ``homolog.config.as_in``.
    """

    size: tuple[int, int, int] = option(
        (48, 48, 48), "crop size z, y, x", unit="voxel", minimum=1, maximum=512
    )
    rotate_deg: tuple[float, float, float] = option(
        (20.0, 20.0, 20.0),
        "rotation about z, y, x, drawn in +- this",
        unit="deg",
        minimum=0,
        maximum=180,
    )
    scale: tuple[float, float] = option(
        (0.9, 1.2), "range of zoom", minimum=0.25, maximum=4
    )
    intensity_probability: float = option(
        0.3, "probability of each intensity change", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class TokenCropConfig(CropConfig):
    """And of crops whose cells (tokens, patches) enter the losses one by one."""

    token_stride: int = option(
        8,
        "side of a token or patch: the stride of one of the backbone's maps",
        unit="voxel",
        choices=(2, 4, 8, 16, 32),
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of flips along z, y, x; flips hide left from right",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    min_valid: float = option(
        0.5,
        "tokens and patches showing less of the scan than this share are left out",
        minimum=0,
        maximum=1,
        advanced=True,
    )


@dataclass(frozen=True)
class MaskedCropConfig(TokenCropConfig):
    """And of crops whose hidden patches are predicted."""

    mask_ratio: float = option(
        0.6, "share of patches hidden", minimum=0.05, maximum=0.95
    )
    decoder_layers: int = option(
        2, "transformer blocks of the decoder (backbones that drop tokens)", minimum=1
    )


@dataclass(frozen=True)
class PairsWanted:
    """Which matching places of two patients a method's Matched views lie at.

    Attributes:
        kind: ``aligned`` by the store's table, ``random`` places of random patients,
            ``same``: the sample's own place, or ``dataset``: any place of the same scan
            or of another one of the same store.
        least_score: Least similarity of a match that is used.
        largest_cycle_mm: Longest way back of a match that is used; 0: any.
        best_share: Of the matches, the most similar first, that is used.
        same_share: Of ``dataset``, share of partners that are the same scan.
    """

    kind: str = "aligned"
    least_score: float = 0.7
    largest_cycle_mm: float = 0.0
    best_share: float = 1.0
    same_share: float = 0.5


# Paper: All recipes.
class Method(nn.Module, ABC):
    """One way to learn without (or with few) labels.

    Attributes:
        Config: Frozen dataclass; makes flags, form and recipe file.
        title: Name for people.
        paper: Citation, one line.
        backbones: Backbones it is meant for; empty means any.
        uses_labels: Whether labels can enter the losses.
        balance: Share of crops centred on a label, unless the user says otherwise.
        share_power: How crops are shared out between stores or modalities, likewise;
            see CaseOrder.
        compares_samples: Whether a term compares the samples of a batch with each
            other: two halves then teach something else than the whole.
        per_rank: Terms that each process computes from its own samples alone -> why.
            All others, averaged over processes, equal those of the whole batch on one
            process, as do their gradients (homolog.distributed gathers and sums).
        sees_padding: Terms that see what a view shows outside the scan -> why. All
            others are blind to it (``View.valid``), but for what a network's norms and
            receptive fields let through.
        RECIPES: ``paper``, ``gpu``, ``cpu`` -> nested overrides with the keys
            ``method``, ``backbone`` (with ``name``), ``training``.
        FOR_TWO_CORES: Recipes in which another network than the recipe's takes its
            small settings (``Backbone.SMALL``).
        SOURCES: Of a recipe as published, where each of its settings is from: see
            ``homolog.recipes.Sources``. Such a recipe is not fitted to the scans.
        paper_scans: How the paper prepares its scans, where that matters.
    """

    Config: ClassVar[type]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    backbones: ClassVar[tuple[str, ...]] = ()
    uses_labels: ClassVar[bool] = False
    balance: ClassVar[float] = 0.0
    share_power: ClassVar[float] = 1.0
    compares_samples: ClassVar[bool] = True
    per_rank: ClassVar[Mapping[str, str]] = {}
    sees_padding: ClassVar[Mapping[str, str]] = {}
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    FOR_TWO_CORES: ClassVar[Sequence[str]] = ("cpu",)
    SOURCES: ClassVar[Mapping[str, Sources]] = {}
    paper_scans: ClassVar[PaperScans | None] = None

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__()
        self.config = config
        self._watched: dict[str, Tensor] = {}

    @abstractmethod
    def views(self) -> dict[str, ViewSpec]:
        """What it needs to see; earlier groups may anchor later ones."""

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """What the user should know before this data is learnt from, in sentences.

        Args:
            classes: Store -> number of classes labelled in it; 0 without labels.
        """
        return []

    @classmethod
    def settled(
        cls, settings: Mapping[str, Any], cases: Sequence[Case]
    ) -> dict[str, Any]:
        """Settings that follow from the data: asked once, then kept with the run.

        Args:
            settings: The complete ones; what the user set stays.
            cases: What is learnt from.
        """
        return dict(settings)

    def turns(self) -> Sequence[str]:
        """Modalities that take turns in every batch, in this order; empty: none do.

        A batch is then a multiple of their number.
        """
        return ()

    def phases(self) -> Sequence[Phase]:
        """Stretches of the training that look at some groups each; empty: all at all.

        ``losses`` gets the groups of the phase, and gives terms for what it gets.
        """
        return ()

    def rate_factors(self) -> Mapping[str, float]:
        """Beginnings of parameters' names -> factor of their learning rate."""
        return {}

    def targets(self, cases: Sequence[Case]) -> list[int] | list[list[float]] | None:
        """What is known of whole scans, as ``View.target``; None where it is unused."""
        return None

    def learns_from_labels(self, card: CaseCard) -> bool:
        """Whether what is known of a case enters the losses: its model tells so."""
        return self.uses_labels and card.has_label

    @abstractmethod
    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """Weighted scalar terms; their sum is minimised.

        Args:
            views: The groups asked for by ``views()``.
            progress: Share of the training done, 0..1.
        """

    def pairs_wanted(self) -> PairsWanted | None:
        """How its Matched views are paired; None where it has none."""
        return None

    def after_step(self, progress: float) -> None:
        """Move teachers, queues, centres; called after the optimiser's step."""

    @abstractmethod
    def encoder(self) -> Backbone:
        """What is worth keeping (student or teacher); its keys are saved plain."""

    def dense_decoder(self) -> Decoder | None:
        """The dense decoder that was trained with ``encoder()``; None: there is none.

        Made by ``homolog.nn.decoders.suited_decoder`` of the encoder, so that a
        segmentation network can start from its weights (all but the head's). Where
        segmentation stands on a 2D network within the encoder (``Backbone.planar``)
        a decoder of the whole one is of no use.
        """
        return None

    def embedder(self) -> Embedder:
        """What makes dense features for similarity and matching, from ``encoder()``.

        The default hands out two of the encoder's own maps with no head: ``features``,
        that of ``config.token_stride`` (or the coarsest but one), knows the organ;
        ``fine``, the finest one, knows the place. Their cosines are averaged, which
        halves the landmark error on the phantom (stride 8 alone 17 mm, 2 and 8
        together 10 mm).
        """
        encoder = self.encoder()
        stride = getattr(self.config, "token_stride", None)
        last = max(len(encoder.strides) - 2, 0)
        index = last if stride is None else encoder.map_of_stride(stride)
        maps = {"features": index}
        if encoder.strides[0] != encoder.strides[index]:
            maps = {"fine": 0, **maps}
        return Embedder(encoder, maps)

    def watch(self, name: str, features: Tensor) -> None:
        """Remember a batch of features (N, E) for the collapse monitors."""
        self._watched[name] = features.detach()

    def monitors(self) -> dict[str, Tensor]:
        """Feature std and effective rank of everything watched; scalars on the device.

        Source: methods reference 1.6. Healthy unit-norm features have a std near
        1 / sqrt(E), reported here times sqrt(E), so that 1 is healthy and 0 collapsed.
        """
        found: dict[str, Tensor] = {}
        for name, features in self._watched.items():
            flat = features.float().reshape(-1, features.shape[-1])[:2048]
            unit = nn.functional.normalize(flat, dim=-1, eps=1e-6)
            found[f"{name}_std"] = unit.std(dim=0).mean() * unit.shape[-1] ** 0.5
            found[f"{name}_rank"] = effective_rank(unit - unit.mean(0))
        return found


def effective_rank(features: Tensor) -> Tensor:
    """Exp of the entropy of the shares of singular values, a scalar.

    On a GPU, where an SVD is slow, they are roots of the eigenvalues of the Gram matrix
    in float64, which loses nothing that float32 features had; on the CPU runs of
    earlier versions go on to the same digits.

    Args:
        features: (N, E) float32, centred.
    """
    on_cpu = features.device.type == "cpu"
    singular: Tensor = torch.linalg.svdvals(features) if on_cpu else _by_gram(features)
    share = singular / singular.sum().clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return entropy.exp().float()


def _by_gram(features: Tensor) -> Tensor:
    """Singular values of (N, E) float32, ascending, float64."""
    wide = features.double()
    gram = wide.mT @ wide if len(wide) >= wide.shape[1] else wide @ wide.mT
    singular: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    return singular


class Embedder(nn.Module):
    """Dense features for similarity and matching: maps of a backbone, optional heads.

    Args:
        backbone: The encoder.
        maps: Feature name -> index of the backbone's map.
        heads: Feature name -> module mapping (B, E_i, d, h, w) -> (B, E, d, h, w).
        neck: Module from all maps to as many maps of the same grids (a pyramid); the
            heads read its result.
        decoder: What makes the features whose map is ``DENSE``: means over cells.
        cell: Voxels (z, y, x) of such a cell.
    """

    def __init__(
        self,
        backbone: Backbone,
        maps: Mapping[str, int],
        heads: Mapping[str, nn.Module] | None = None,
        neck: nn.Module | None = None,
        decoder: Decoder | None = None,
        cell: Index = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.maps = dict(maps)
        self.heads = nn.ModuleDict(dict(heads or {}))
        self.neck = neck
        self.decoder = decoder
        self.cell = cell

    def with_maps(self, maps: Mapping[str, int]) -> Embedder:
        """The same features under another order or choice of names."""
        return Embedder(
            self.backbone, maps, dict(self.heads), self.neck, self.decoder, self.cell
        )

    def own_state(self) -> dict[str, Tensor]:
        """Weights of neck, decoder and heads, which are no part of the encoder."""
        found = {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        for name, part in (("neck", self.neck), ("decoder", self.decoder)):
            if part is not None:
                found |= {f"{name}.{k}": v for k, v in part.state_dict().items()}
        return found

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``own_state``; every weight must be there."""
        rest = {f"backbone.{k}": v for k, v in self.backbone.state_dict().items()}
        self.load_state_dict({**rest, **state})

    def stride(self, name: str) -> tuple[int, int, int]:
        """Voxels (z, y, x) per cell of a feature."""
        index = self.maps[name]
        return self.cell if index == DENSE else self.backbone.strides[index]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, C, D, H, W) -> name -> (B, E, d, h, w), unit norm along E, float32."""
        return self.unit(self.read(image, self.backbone.maps(image), self.maps))

    @staticmethod
    def unit(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features of unit norm along E, float32."""
        return {
            name: nn.functional.normalize(features.float(), dim=1, eps=1e-6)
            for name, features in found.items()
        }

    def read(
        self, image: Tensor, maps: tuple[Tensor, ...], names: Iterable[str]
    ) -> dict[str, Tensor]:
        """Features by name, of any length along E, from the backbone's maps."""
        dense = None
        if self.decoder is not None:
            dense = self.decoder.cells(image, maps, self.cell)
        if self.neck is not None:
            maps = self.neck(maps)
        result = {}
        for name in names:
            index = self.maps[name]
            features = maps[index] if index != DENSE or dense is None else dense
            result[name] = (
                self.heads[name](features) if name in self.heads else features
            )
        return result
