"""Bands of whole slices are changed before crops are cut from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef, slice_values
from homolog.geometry.affine import Affine
from homolog.methods.hundred_million import HundredMillion
from homolog.views.energy_bands import BandReference, Spectrum, drawn_energies
from homolog.views.generate import share_blocks
from homolog.views.plan import Scan, plan_views
from homolog.views.view import Elsewhere, Intensity, Same, ViewSpec, check_specs
from memory_store import MemoryStore

SIGMAS = (0.5, 2.0)
REFERENCE = BandReference(
    SIGMAS, (0.1, 0.2, 0.8, 0.4, 0.1, 0.9), (0.01,) * 6, True, ("CT", "MR")
)


def cases(count: int = 2, modality: str = "CT", spacing: float = 1.0) -> list[CaseRef]:
    store = MemoryStore()
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = rng.normal(0, 60, (1, 6, 90, 80)).cumsum(-1).cumsum(-2) / 20
        store.add(np.rint(image).astype(np.int16), Affine.of((2.0, spacing, spacing)))
    return [
        CaseRef(store, dataclasses.replace(card, modality=modality))  # type: ignore[arg-type]
        for card in store.cards
    ]


def spec(**changes: Any) -> ViewSpec:
    bands = Intensity(bands_probability=1.0, bands_reference=REFERENCE)
    asked = {"place": Elsewhere(slices=True), "count": 3, "intensity": bands}
    return ViewSpec((1, 16, 20), **{**asked, **changes})


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_crops_are_cut_from_the_changed_slice(modality: str) -> None:
    """Paper: Hundred Million Eq. 8, the entire image."""
    feed = Feed(
        cases(modality=modality), {"crop": spec()}, batch_size=2, seed=3, threads=0
    )
    assert [share.per_view for share in share_blocks({"crop": spec()})] == [True]
    view = feed.views(feed.batch(0), "cpu")["crop"]
    for sample in range(2):
        card = feed.cases[int(view.case[sample])].card
        store = feed.cases[int(view.case[sample])].store
        plan = plan_views(
            {"crop": spec()}, Scan(card.affine, card.shape),
            lambda _: np.zeros(3), seed=3, sample=sample,
        )["crop"]  # fmt: skip
        for row in range(3):
            corner = card.affine.inverse().apply(view.affine[sample, row, :3, 3])
            z, y, x = np.rint(corner).astype(int)
            whole = Spectrum(slice_values(store.image(card.id), card, z), SIGMAS)
            key = torch.from_numpy(plan.intensity.key[row : row + 1])
            wanted = drawn_energies(REFERENCE.of(modality), key)[0].double().numpy()
            changed = whole.with_energies(wanted)[0, y : y + 16, x : x + 20]
            found = view.image[sample, row, 0, 0].numpy()
            step = card.scale / card.spread  # what the store's numbers can tell apart
            assert np.abs(found - changed).max() <= 0.51 * step
            assert np.abs(found - whole.slices[0, y : y + 16, x : x + 20]).max() > step


def test_a_shrunk_view_is_averaged_from_the_changed_slice() -> None:
    wide = spec(scale=(0.2, 0.25))
    feed = Feed(cases(), {"crop": wide}, batch_size=2, seed=0, threads=0)
    batch = feed.batch(0)
    view = feed.views(batch, "cpu")["crop"]
    assert view.image.isfinite().all()
    assert batch.blocks[0].image.shape[-1] < 80  # pooled before it travels


def test_what_cannot_be_done_so_is_refused() -> None:
    with pytest.raises(ValueError, match="one slice"):
        check_specs({"crop": dataclasses.replace(spec(), size=(4, 16, 20))})
    plain = spec(intensity=Intensity())
    with pytest.raises(ValueError, match="one slice and its own"):
        check_specs({"crop": plain, "same": spec(place=Same("crop"))})


def test_references_are_of_whole_slices_of_each_modality() -> None:
    """Paper: Hundred Million III-C, references."""
    ct, mr = cases(3), cases(2, "MR")
    for case in mr:
        case.store.images[case.card.id] = case.store.images[case.card.id] * 2  # type: ignore[attr-defined]
    settings = {
        "modalities": ["CT", "MR"], "class_names": [], "weight_classes": 0.0,
        "weight_masks": 0.0, "mask_rows": [], "bands_probability": 0.5,
        "bands_mean": [], "bands_of": "image", "bands_sigmas": list(SIGMAS),
        "size": [1, 16, 16],
    }  # fmt: skip
    found = HundredMillion.settled(settings, [*ct, *mr])
    assert found["bands_modalities"] == ["CT", "MR"]
    mean = np.array(found["bands_mean"]).reshape(2, 3)
    assert (mean[1] > 1.3 * mean[0]).all()
    slices = np.concatenate(
        [slice_values(c.store.image(c.card.id), c.card, z) for c in ct
         for z in range(1, 5)]
    )  # fmt: skip
    own = Spectrum(slices, SIGMAS).energies().mean(1)
    np.testing.assert_allclose(mean[0], own, rtol=0.3)
    # and of the crops of volumes, as before
    deep = HundredMillion.settled({**settings, "size": [4, 16, 16]}, ct)
    assert deep["bands_of"] == "crop"
    assert len(deep["bands_mean"]) == 3
