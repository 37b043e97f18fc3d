"""Features of labelled voxels: do those of one organ lie together in every patient?

t-SNE and PCA show it; silhouettes, and similarities within and between organs of
different patients, say it in numbers, against the same network with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.events import Job, Progress, Request
from homolog.probe.cases import Patient, Sample, draw_voxels
from homolog.probe.sources import Source

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

# Of t-SNE: more points take long and hide each other.
_MOST_DRAWN = 1500
_PERPLEXITY = 30.0
# Pairs of voxels whose similarities are ranked.
_PAIRS = 200_000


@dataclass(frozen=True, eq=False)
class Tokens:
    """Features of voxels, and whose they are.

    Attributes:
        vectors: (N, F), unit length.
        organ: (N,) place of each one's label among the names.
        patient: (N,) number of each one's patient.
        names: Of the labels.
    """

    vectors: Floats
    organ: Places
    patient: Places
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OrganVoxels:
    """The voxels that are looked at; the same for every encoder.

    Attributes:
        samples: One per case, no background.
        patients: Number of each sample's patient.
        names: Of the labels, in the order of ``Sample.classes``.
    """

    samples: tuple[Sample, ...]
    patients: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def draw(cls, patients: Sequence[Patient], voxels: int, seed: int) -> OrganVoxels:
        """Draw voxels of every label and case.

        Args:
            patients: With labelled cases.
            voxels: Of each label and case, at most.
            seed: Of the draw.

        Raises:
            UnusableInput: Fewer than two labels, or two patients, to tell apart.
        """
        cases = [(n, c) for n, p in enumerate(patients) for c in p.cases]
        labels = sorted({v for _, c in cases for v in c.card.label_values if v > 0})
        if len(labels) < 2 or len(patients) < 2:
            raise UnusableInput(
                "features are compared between labels and between patients: two of "
                f"each are needed, got {len(labels)} labels and {len(patients)} "
                "patients with label maps."
            )
        known = cases[0][1].store.label_names
        samples = [draw_voxels(c, labels, voxels, 0, seed) for _, c in cases]
        names = tuple(known.get(v, f"label {v}") for v in labels)
        return cls(tuple(samples), tuple(n for n, _ in cases), names)

    def read(self, source: Source) -> Job[dict[str, Tokens] | None]:
        """Tokens of every set of a source's maps; None when stopped."""
        for number, sample in enumerate(self.samples):
            name = sample.case.card.id
            news = Progress(source.name, number, len(self.samples), name)
            if (yield news) is Request.STOP:
                return None
            if not (yield from source.prepare(sample.case)):
                return None
        parts = [source.vectors(s.case, s.voxels) for s in self.samples]
        organ = np.concatenate([s.classes for s in self.samples]).astype(np.int64)
        patient = np.repeat(self.patients, [len(s.classes) for s in self.samples])
        return {
            name: Tokens(
                _unit(np.concatenate([_joined(p, places) for p in parts])),
                organ,
                patient.astype(np.int64),
                self.names,
            )
            for name, places in source.sets.items()
        }


def _joined(parts: Sequence[Floats], places: Sequence[int]) -> Floats:
    """Maps side by side, each of unit length: none outweighs another by its size."""
    return np.concatenate([_unit(parts[i]) for i in places], axis=1)


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-8), np.float32)


@dataclass(frozen=True)
class Separation:
    """How far organs lie apart.

    Attributes:
        silhouette: Mean over organs of the silhouette of their voxels (Rousseeuw 1987;
            cosine distance), -1..1: 1, each organ is a tight cluster of its own; 0,
            clusters overlap.
        by_organ: The same of each.
        within: Mean cosine similarity of voxels of one organ in two patients.
        between: Of different organs in two patients.
        auc: How often a pair of one organ is more alike than one of two organs, of
            voxels of two patients: 0.5 is chance.
        likeness: (K, K) mean cosine similarity of organs between two patients.
    """

    silhouette: float
    by_organ: Mapping[str, float]
    within: float
    between: float
    auc: float
    likeness: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """JSON types, rounded."""
        return {
            "silhouette": _told(self.silhouette),
            "by_organ": {k: _told(v) for k, v in self.by_organ.items()},
            "within": _told(self.within),
            "between": _told(self.between),
            "auc": _told(self.auc),
            "likeness": [[_told(v) for v in row] for row in self.likeness],
        }


def separation(tokens: Tokens, seed: int = 0) -> Separation:
    """Measure tokens of at least two organs and patients.

    Source: S2DC, Fig. 4 and 5 (silhouettes of 13 organs of BTCV).
    Differs from the paper: which distance and which voxels it took is not said there.
        Here: cosine distance, as many voxels of each organ, and the mean over organs;
        similarities are told between patients only, for neighbours in one scan are
        alike whatever was learnt.

    Paper: S2DC Fig. 4, 5.
    """
    from sklearn.metrics import silhouette_samples

    each = silhouette_samples(tokens.vectors, tokens.organ, metric="cosine")
    count = len(tokens.names)
    by_organ = {
        name: float(each[tokens.organ == k].mean())
        for k, name in enumerate(tokens.names)
        if (tokens.organ == k).any()
    }
    likeness = _likeness(tokens)
    same = np.eye(count, dtype=bool)
    return Separation(
        float(np.mean(list(by_organ.values()))),
        by_organ,
        float(np.nanmean(likeness[same])),
        float(np.nanmean(likeness[~same])),
        _pair_auc(tokens, seed),
        likeness,
    )


def _likeness(tokens: Tokens) -> NDArray[np.float64]:
    """(K, K) mean similarity of two organs' voxels in two patients; NaN of none.

    The mean of all pairs is the product of sums: no pair is ever made.
    """
    count, people = len(tokens.names), int(tokens.patient.max()) + 1
    sums = np.zeros((people, count, tokens.vectors.shape[1]))
    sizes = np.zeros((people, count))
    np.add.at(sums, (tokens.patient, tokens.organ), tokens.vectors)
    np.add.at(sizes, (tokens.patient, tokens.organ), 1)
    total, whole = sums.sum(axis=0), sizes.sum(axis=0)
    products = total @ total.T - np.einsum("pkf,plf->kl", sums, sums)
    pairs = np.outer(whole, whole) - np.einsum("pk,pl->kl", sizes, sizes)
    found = np.full((count, count), np.nan)
    np.divide(products, pairs, out=found, where=pairs > 0)
    return found


def _pair_auc(tokens: Tokens, seed: int) -> float:
    """Area under the ROC curve of similarity, for drawn pairs of two patients."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    size = len(tokens.organ)
    by_organ = [np.flatnonzero(tokens.organ == k) for k in range(len(tokens.names))]
    first = rng.integers(size, size=_PAIRS)
    other = rng.integers(size, size=_PAIRS)
    # half of the pairs are of one organ: by chance few would be
    for k, own in enumerate(by_organ):
        mine = np.flatnonzero(tokens.organ[first[: _PAIRS // 2]] == k)
        if len(own):
            other[mine] = own[rng.integers(len(own), size=len(mine))]
    apart = tokens.patient[first] != tokens.patient[other]
    first, other = first[apart], other[apart]
    same = tokens.organ[first] == tokens.organ[other]
    if same.all() or not same.any():
        return float("nan")
    alike = np.einsum("nf,nf->n", tokens.vectors[first], tokens.vectors[other])
    return float(roc_auc_score(same, alike))


def drawn(tokens: Tokens, seed: int = 0) -> Places:
    """Places of the tokens that are drawn: as many of each organ, 1500 at most."""
    rng = np.random.default_rng(seed)
    many = max(1, _MOST_DRAWN // len(tokens.names))
    kept = []
    for k in range(len(tokens.names)):
        own = np.flatnonzero(tokens.organ == k)
        kept.append(np.sort(rng.permutation(own)[:many]))
    return np.concatenate(kept)


def tsne(tokens: Tokens, seed: int = 0) -> NDArray[np.float64]:
    """(N, 2) places by t-SNE of cosine distances (van der Maaten and Hinton 2008).

    Paper: S2DC Fig. 4, 5.
    """
    from sklearn.manifold import TSNE

    size = len(tokens.vectors)
    shown = TSNE(
        perplexity=min(_PERPLEXITY, max(1.0, (size - 1) / 3)),
        metric="cosine",
        init="pca",
        random_state=seed,
        n_jobs=1,
    ).fit_transform(tokens.vectors)
    return np.asarray(shown, np.float64)


def pca(tokens: Tokens, seed: int = 0) -> tuple[NDArray[np.float64], float]:
    """(N, 2) places along the two main directions, and their share of the variance."""
    from sklearn.decomposition import PCA

    model = PCA(2, random_state=seed)
    shown = model.fit_transform(tokens.vectors)
    return np.asarray(shown, np.float64), float(model.explained_variance_ratio_.sum())


def part_of(tokens: Tokens, places: Places) -> Tokens:
    """Some of the tokens."""
    return Tokens(
        tokens.vectors[places], tokens.organ[places], tokens.patient[places],
        tokens.names,
    )  # fmt: skip


def _told(value: float) -> float | None:
    return None if value != value else round(float(value), 4)
