"""Hundred Million: label maps and boxes that teach; H-T10 through the whole loss."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import ConfigError, from_dict, to_dict
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.losses.segmentation import dice_cross_entropy
from homolog.methods.hundred_million import (
    HundredMillion,
    HundredMillionConfig,
    masks_of,
)
from homolog.store.crops import BOXES
from homolog.views.view import View, Views
from memory_store import MemoryStore

SHAPE = (2, 32, 32)
SMALL = {
    "size": [1, 32, 32], "small_size": [1, 16, 16], "dim": 8, "hidden": 16,
    "queue_length": 0, "prototypes": 6, "freeze": 0.0, "bands_probability": 0.0,
    "scale": [1.0, 1.0], "rotate_deg": [0.0, 0.0, 0.0],
}  # fmt: skip
BOX = {"label": "Ball", "min": [0, 8, 8], "max": [2, 24, 20]}
NET = {"widths": [8, 16], "stage_blocks": [1, 1], "norm": "group"}


class NamedStore(MemoryStore):
    """A store of a name, whose labels are called so."""

    def __init__(self, name: str, label_names: dict[int, str]) -> None:
        super().__init__()
        self.path = Path("/data") / name
        self.label_names = label_names

    def put(
        self, label: np.ndarray | None = None, *boxes: dict, **more: Any
    ) -> CaseRef:
        """A case, brighter where it is labelled or boxed."""
        rng = np.random.default_rng(len(self.cards))
        image = rng.normal(-200, 30, SHAPE)
        if label is not None:
            image += 150 * label
        for box in boxes:
            inside = tuple(
                slice(a, b) for a, b in zip(box["min"], box["max"], strict=True)
            )
            image[inside] += 300
        case = self.add(np.rint(image)[None], Affine.of((4.0, 1.0, 1.0)), label)
        card = dataclasses.replace(case.card, boxes=boxes, **more)
        return CaseRef(self, card)  # type: ignore[arg-type]


def squares(*values: int) -> np.ndarray:
    """A label map with a square of each value."""
    label = np.zeros(SHAPE, int)
    for number, value in enumerate(values):
        label[:, 4 + 12 * number : 14 + 12 * number, 6:22] = value
    return label


def three_stores() -> list[CaseRef]:
    """One without labels, one of maps, one of maps and boxes under other numbers."""
    bare, maps = NamedStore("bare", {}), NamedStore("maps", {1: "ball", 2: "block"})
    both = NamedStore("both", {3: " Block", 5: "label 5"})
    return [
        bare.put(), bare.put(),
        maps.put(squares(1, 2)), maps.put(squares(2)), maps.put(),
        both.put(squares(3, 5)), both.put(None, BOX), both.put(squares(3), BOX),
    ]  # fmt: skip


def method_of(
    cases: list[CaseRef], net: Backbone | None = None, **settings: object
) -> HundredMillion:
    asked = to_dict(from_dict(HundredMillionConfig, {**SMALL, **settings}))
    config = from_dict(HundredMillionConfig, HundredMillion.settled(asked, cases))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HundredMillion(net or build("resnet2d", NET), config)


def views_of(method: HundredMillion, cases: list[CaseRef], batch: int = 0) -> Views:
    feed = Feed(
        cases, method.views(), batch_size=batch or len(cases), seed=0, threads=0
    )
    return feed.views(feed.batch(0), "cpu")


def test_labels_of_one_name_are_one_class_whoever_drew_them() -> None:
    names, rows = masks_of(three_stores())
    assert names == ["ball", "block", "label 5 of both"]
    assert rows == [
        (1, 1, 1), (1, 2, 2),
        (2, 3, 2), (2, 5, 3), (2, BOXES + 1, 1),
    ]  # fmt: skip
    assert masks_of(three_stores()[:2]) == ([], [])


def test_cells_are_of_the_class_their_own_store_means() -> None:
    cases = three_stores()
    method = method_of(cases)
    assert method.masks is not None
    view = views_of(method, cases)["large"]
    assert view.label is not None
    grid = (1, 8, 8)
    target, annotated = method.masks.target(view, grid)
    assert method.masks.stride == (1, 4, 4)
    # case -> value in the view -> class, and the classes the store says something of
    meant: dict[int, tuple[dict[int, int], list[int]]] = {
        0: ({-1: -1}, []), 1: ({-1: -1}, []),
        2: ({-1: -1, 0: 0, 1: 1, 2: 2}, [1, 2]),
        3: ({-1: -1, 0: 0, 1: 1, 2: 2}, [1, 2]),
        4: ({-1: -1}, []),
        5: ({-1: -1, 0: 0, 3: 2, 5: 3}, [2, 3]),
        6: ({-1: -1, BOXES: 0, BOXES + 1: 1}, [1]),
        7: ({-1: -1, 0: 0, 3: 2, 5: 3}, [2, 3]),
    }  # fmt: skip
    for row in range(2 * len(cases)):
        values, classes = meant[int(view.case[row // 2])]
        label = view.label.flatten(0, 1)[row, :, 2::4, 2::4]
        expected = [values[v] for v in label.flatten().tolist()]
        assert target[row].flatten().tolist() == expected
        if max(expected) >= 0:
            found = annotated[row].nonzero().flatten().tolist()
            assert found == [0, *classes]
    assert set(target.flatten().tolist()) == {-1, 0, 1, 2, 3}


def test_masks_add_a_term_of_their_own_and_only_that() -> None:
    """Paper: Hundred Million Eq. 5 to 7."""
    cases = three_stores()
    method = method_of(cases, weight_masks=3.0)
    views = views_of(method, cases)
    losses = method.losses(views, 0.5)
    assert list(losses) == ["clusters", "masks"]
    without = method_of(cases, weight_masks=0.0)
    assert not without.views()["large"].labels
    without.load_state_dict(method.state_dict(), strict=False)
    plain = without.losses(views_of(without, cases), 0.5)
    assert list(plain) == ["clusters"]
    torch.testing.assert_close(plain["clusters"], losses["clusters"])
    # by hand, on the map of stride 4
    assert method.masks is not None
    view = views["large"]
    maps = method.backbone.maps(view.flat())
    logits = method.masks.decoder(tuple(maps[1:]))
    target, annotated = method.masks.target(view, logits.shape[2:])
    dice, cross_entropy = dice_cross_entropy(logits, target, annotated, together=True)
    torch.testing.assert_close(losses["masks"], 3 * (dice + cross_entropy))
    losses["masks"].backward()
    still = [n for n, p in method.backbone.named_parameters() if p.grad is None]
    assert not still  # the encoder learns from them
    assert method.projector.layers[0].weight.grad is None


def test_scans_without_masks_say_nothing() -> None:
    cases = three_stores()
    method = method_of(cases)
    views = views_of(method, cases)
    view = views["large"]
    image = view.image.clone()
    bare = torch.tensor([not (c.card.has_label or c.card.boxes) for c in cases])
    image[bare[view.case]] += 3.0
    other = Views({**views, "large": dataclasses.replace(view, image=image)})
    first, second = (method.losses(v, 0.5) for v in (views, other))
    torch.testing.assert_close(first["masks"], second["masks"])
    assert not torch.allclose(first["clusters"], second["clusters"])
    assert view.label is not None
    unknown = dataclasses.replace(view, label=torch.full_like(view.label, -1))
    nothing = method.losses(Views({**views, "large": unknown}), 0.5)["masks"]
    assert nothing.item() == 0.0


def test_strict_divides_masks_by_the_whole_batch() -> None:
    cases = three_stores()  # five of eight have a mask
    method, strict = method_of(cases), method_of(cases, strict=True)
    views = views_of(method, cases)
    a, b = (m.losses(views, 0.5)["masks"].item() for m in (method, strict))
    assert b == pytest.approx(a * 5 / 8)


def test_e_t12_masks_and_boxes_of_a_batch_are_learnt_by_heart() -> None:
    cases = three_stores()
    net = build("resnet2d", {**NET, "widths": [16, 32], "block": "basic"})
    method = method_of(cases, net, weight_clusters=0.0)
    views = views_of(method, cases)
    optimiser = torch.optim.AdamW(method.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        error = torch.stack(list(method.losses(views, 0.5).values())).sum()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.25 * errors[0]
    assert float(method.monitors()["mask_dice"]) > 0.9


def test_it_tells_which_masks_teach_and_whose_labels_enter() -> None:
    cases = three_stores()
    method = method_of(cases)
    assert method.remarks({}) == [
        "label maps that teach: ball, block and label 5 of both.",
        "boxes that teach: ball.",
    ]
    told = [method.learns_from_labels(case.card) for case in cases]
    assert told == [False, False, True, True, False, True, True, True]
    without = method_of(cases, weight_masks=0.0)
    assert not any(without.learns_from_labels(case.card) for case in cases)
    # a class of a scan counts where there are two, in a modality that has a turn
    store = NamedStore("xr", {})
    known = [
        store.put(target=t, modality=m)
        for t, m in (("ill", "XR"), ("well", "XR"), (None, "XR"), ("ill", "US"))
    ]
    told = [
        method_of(known, modalities=["CT", "XR"]).learns_from_labels(c.card)
        for c in known
    ]
    assert told == [True, True, False, False]
    alone = method_of(known[:1])
    assert not alone.learns_from_labels(known[0].card)


def test_rows_that_name_no_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="class 1 to 1 of mask_names"):
        method_of(three_stores(), mask_names=["ball"], mask_rows=[[0, 1, 2]])


class Flat(Backbone):
    """A dense network of slices (all kernels (1, 3, 3)) with 2D layers, as 2D image."""

    spatial_dims = 2

    def __init__(self, solid: Backbone) -> None:
        super().__init__(solid.config)
        self.channels, self.strides = solid.channels, solid.strides
        self.size_divisor = solid.size_divisor
        self.stem, self.blocks = flat(solid.stem), flat(solid.blocks)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found, maps = self.stem(image), []
        for number, block in enumerate(self.blocks):
            if number:
                found = nn.functional.avg_pool2d(found, 2)
            for unit in block:
                found = torch.cat([found, unit(found)], 1)
            maps.append(found)
        return tuple(maps)


def flat(module: Any) -> Any:
    """The same layers in 2D, with weights of their own."""
    if isinstance(module, nn.Conv3d):
        layer = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size[1:],
            module.stride[1:], module.padding[1:], bias=False,
        )  # fmt: skip
        layer.weight = nn.Parameter(module.weight.detach()[:, :, 0].clone())
        return layer
    if isinstance(module, nn.BatchNorm3d):
        return nn.BatchNorm2d(module.num_features)
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return (
            type(module)(*map(flat, module))
            if isinstance(module, nn.Sequential)
            else nn.ModuleList(map(flat, module))
        )
    return nn.LeakyReLU(module.negative_slope)


def test_h_t10_slices_through_a_3d_network_cost_what_they_do_through_a_2d_one() -> None:
    cases = three_stores()
    torch.manual_seed(1)
    solid = build("densenet", {"flat_blocks": 3, "units": [1, 2, 2]})
    pair = [method_of(cases, net) for net in (solid, Flat(solid))]
    pair[1].projector.load_state_dict(pair[0].projector.state_dict())
    views = [views_of(method, cases) for method in pair]
    found = [method.losses(v, 0.5) for method, v in zip(pair, views, strict=True)]
    assert set(found[0]) == {"clusters", "masks"}
    torch.testing.assert_close(found[0], found[1])
    for losses in found:
        torch.stack(list(losses.values())).sum().backward()
    for a, b in zip(solid.parameters(), pair[1].backbone.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(
            a.grad.reshape(b.shape), b.grad, atol=1e-5, rtol=1e-3
        )


def test_volumes_take_the_same_way() -> None:
    cases = [case for case in three_stores() for _ in (0, 1)]
    method = method_of(
        cases, build("densenet"), size=[2, 32, 32], small_size=[2, 16, 16]
    )
    views = views_of(method, cases)
    losses = method.losses(views, 0.5)
    torch.stack(list(losses.values())).sum().backward()
    learning = dict(method.named_parameters())
    assert [n for n, p in learning.items() if p.grad is None] == []
    assert isinstance(views["large"], View)
    assert views["large"].size == (2, 32, 32)


def test_e_t12_the_dense_network_learns_a_batch_of_volumes_without_collapse(
    phantom_store: Any,
) -> None:
    cases = [CaseRef(phantom_store, card) for card in phantom_store.cards]
    torch.manual_seed(0)
    method = method_of(
        cases, build("densenet"), size=[8, 32, 32], small_size=[4, 16, 16],
        prototypes=8, dim=16, hidden=32, weight_masks=0.0, scale=[0.8, 1.2],
    )  # fmt: skip
    views = views_of(method, cases)
    optimiser = torch.optim.AdamW(method.parameters(), 1e-3)
    losses = []
    for _ in range(60):
        loss = method.losses(views, 0.5)["clusters"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(0.5)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * math.log(method.prototypes) < losses[0]
    told = method.monitors()
    assert told["usage"] > 0.95
    assert told["features_std"] > 0.5
