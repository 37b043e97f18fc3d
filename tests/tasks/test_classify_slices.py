"""Volumes slice by slice, and what is learnt of single slices."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from classify_runs import NET, learnt, prepared, run
from each import each
from homolog.backbones import build
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.feed.batches import Feed, view_of
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.nn.heads import InstancePooling
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.store import Store
from homolog.tasks.base import Trained
from homolog.tasks.classify.answer import stored
from homolog.tasks.classify.network import ClassifyNetwork, slice_vectors, slices_inside
from homolog.tasks.classify.space import ClassifyConfig
from homolog.tasks.classify.task import Classify
from homolog.tasks.classify.truth import Space, Truth, slice_truth, slices_in_view
from homolog.views.view import ViewSpec, Whole
from memory_store import random_cases

CPU = torch.device("cpu")
SHAPE = (9, 40, 36)
AFFINE = Affine.of((4.0, 1.0, 1.0), (-20.0, 5.0, 9.0), np.diag([1.0, -1.0, -1.0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty volumes, half with a bright spot on two slices, and label maps."""
    folder = tmp_path_factory.mktemp("heads")
    rng = np.random.default_rng(0)
    z, y, x = np.indices(SHAPE)
    rows = [["image", "label", "modality", "class", "types"]]
    for number in range(30):
        bleeds = number % 2 == 1
        data = 30 + rng.normal(0, 6, SHAPE)
        data[np.hypot(y - 19.5, x - 17.5) > 17] = -1000
        first, place = rng.integers(1, 7), rng.uniform((12, 12), (26, 24))
        spot = (
            (np.hypot(y - place[0], x - place[1]) < 4) & (z >= first) & (z < first + 2)
        )
        name = f"h{number:02}"
        if bleeds:
            data[spot] = 700
            write_labels(
                LabelMap(spot.astype(np.uint8), AFFINE), folder / f"{name}_seg.nii.gz"
            )
        volume = Volume(data.astype(np.int16)[None], AFFINE, name, "CT")
        write_volume(volume, folder / f"{name}.nii.gz")
        told = "bleed" if bleeds else "no finding"
        types = ("left" if place[1] < 18 else "right") if bleeds else ""
        label = f"{name}_seg.nii.gz" if bleeds else ""
        rows.append([f"{name}.nii.gz", label, "CT", told, types])
    with (folder / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepared(folder / "scans.csv", tmp_path_factory.mktemp("store") / "s")


@pytest.fixture(scope="module")
def model(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "heads"
    settings = ("weight_slices=1", "training.batch_size=6", "hidden=16")
    return learnt(store, out, 120, *settings, "training.learning_rate=1e-2")


def test_a_2d_network_finds_the_scan_and_the_slice(store: Store, model: Path) -> None:
    result = run("evaluate", store.path, "--model", model, "--split=all")
    assert result["cases"] == 30
    assert result["mean"]["auc"] > 0.9
    assert result["slices"]["auc"] > 0.9
    assert result["slices"]["positives"] == 30  # two in each of fifteen scans
    assert result["slices"]["negatives"] == 30 * 9 - 30
    assert set(result["types"]["classes"]) == {"left", "right"}
    assert {"type_left", "type_right"} <= set(result["rows"][0])


def test_predict_tells_which_slices(folder: Path, model: Path, tmp_path: Path) -> None:
    result = run(
        "predict", folder / "h01.nii.gz", "--model", model, "--out", tmp_path / "o"
    )
    told = result["predicted"][0]
    assert told["types"].keys() == {"left", "right"}
    with (tmp_path / "o" / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["slice"]) for r in rows] == list(range(9))
    assert list(rows[0]) == [
        "scan", "slice", "z_mm", "presence", "attention", "p_bleed", "p_no finding",
    ]  # fmt: skip
    steps = np.diff([float(r["z_mm"]) for r in rows])
    np.testing.assert_allclose(np.abs(steps), 4.0, atol=1e-3)
    assert sum(float(r["attention"]) for r in rows) == pytest.approx(1.0, abs=1e-2)
    from homolog.scans.files import read_labels

    spot = read_labels(folder / "h01_seg.nii.gz").data.any(axis=(1, 2))
    presence = np.array([float(r["presence"]) for r in rows])
    assert presence[spot].min() > presence[~spot].max()


@each("depth", [5, 6, 8, 9])
def test_own_slices_are_copied_where_they_fit(depth: int) -> None:
    case = random_cases([(depth, 16, 16)], Affine.of((3.0, 1.0, 1.0)))[0]
    spec = ViewSpec(size=(9, 16, 16), place=Whole(slices=True))
    view = view_of(spec, stored(case), CPU)
    inside = slices_inside(view)[0]
    assert int(inside.sum()) == depth
    plain = view_of(ViewSpec(size=(depth, 16, 16), place=Whole()), stored(case), CPU)
    torch.testing.assert_close(view.image[:, :, :, inside], plain.image)


def test_more_slices_than_fit_are_spread_over_the_whole_scan() -> None:
    case = random_cases([(40, 24, 24)], Affine.of((3.0, 1.0, 1.0)))[0]
    spec = ViewSpec(size=(10, 12, 12), place=Whole(slices=True))
    view = view_of(spec, stored(case), CPU)
    np.testing.assert_allclose(
        Affine(view.affine[0, 0].numpy()).spacing_mm, (12.0, 2.0, 2.0)
    )
    assert bool(slices_inside(view).all())


def test_slices_of_a_moved_view_keep_their_truth() -> None:
    """Against the label map, cut along with the image."""
    cases = random_cases([(12, 20, 20), (12, 20, 20)], Affine.of((3.0, 1.0, 1.0)))
    for case in cases:
        label = case.store.label(case.card.id)
        label[:] = 0
        label[3:5] = 1
    spec = ViewSpec(
        size=(12, 20, 20), place=Whole(slices=True), translate=(0.3, 0.0, 0.0),
        flip=(0.5, 0.0, 0.0), labels=True,
    )  # fmt: skip
    space = Space(("a",), slices=12)
    task_rows = [
        [0.0, *case.card.affine.inverse().matrix[0], *slice_truth(case)]
        for case in cases
    ]
    feed = Feed(cases, {"scan": spec}, batch_size=8, seed=1, threads=0,
                targets=task_rows)  # fmt: skip
    view = feed.views(feed.batch(0), CPU)["scan"]
    truth = Truth.of(view.target, space)
    found = slices_in_view(truth, view.affine[:, 0], view.size, slices_inside(view))
    expected = view.label[:, 0].amax((2, 3))
    assert torch.equal(found, expected)
    assert {-1, 0, 1} == set(found.flatten().tolist())


def test_a_thick_slice_is_positive_where_any_it_covers_is() -> None:
    case = random_cases([(40, 20, 20)], Affine.of((3.0, 1.0, 1.0)))[0]
    case.store.label(case.card.id)[:] = 0
    case.store.label(case.card.id)[17] = 1
    row = [0.0, *case.card.affine.inverse().matrix[0], *slice_truth(case)]
    truth = Truth.of(torch.tensor([row]), Space(("a",), slices=40))
    view = view_of(
        ViewSpec(size=(8, 20, 20), place=Whole(slices=True)), stored(case), CPU
    )
    found = slices_in_view(truth, view.affine[:, 0], view.size, slices_inside(view))
    assert found.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0]]


def test_slice_truth_of_boxes_of_no_finding_and_of_nothing() -> None:
    case = random_cases([(6, 8, 8)], Affine.of((3.0, 1.0, 1.0)))[0]
    box = {"label": "a", "min": [1.0, 0.0, 0.0], "max": [3.0, 4.0, 4.0]}

    def told(**changes: object) -> list[int] | None:
        card = replace(case.card, has_label=False, **changes)
        found = slice_truth(CaseRef(case.store, card))
        return None if found is None else found.tolist()

    assert told(target="a", boxes=(box,)) == [0, 1, 1, 0, 0, 0]
    assert told(target="no finding") == [0] * 6
    assert told(target="a") is None


def test_chunks_change_neither_values_nor_gradients_nor_averages() -> None:
    torch.manual_seed(0)
    encoder = build("resnet2d", {**NET, "norm": "batch"})
    image = torch.randn(2, 1, 7, 32, 32)
    known = torch.ones(2, 7, dtype=torch.bool)
    known[1, 4:] = False
    encoder.eval()
    parts = [slice_vectors(encoder, image, known, chunk=chunk) for chunk in (3, 99)]
    torch.testing.assert_close(*parts)
    grads = []
    for found in parts:
        encoder.zero_grad()
        found.square().sum().backward()
        grads.append(encoder.conv1.weight.grad.clone())
    torch.testing.assert_close(*grads)
    assert parts[0][1, 4:].abs().sum() == 0
    # in training mode the running averages see each chunk once
    import copy

    encoder.train()
    twin = copy.deepcopy(encoder)
    slice_vectors(encoder, image, known, chunk=3).sum().backward()
    with torch.no_grad():
        slice_vectors(twin, image, known, chunk=3)
    torch.testing.assert_close(encoder.bn1.running_mean, twin.bn1.running_mean)
    assert encoder.bn1.momentum == 0.1


@pytest.mark.parametrize("kind", ["attention", "mean", "max"])
def test_pooling_leaves_out_what_is_not_known(kind: str) -> None:
    torch.manual_seed(0)
    pooling = InstancePooling(6, kind, hidden=4)
    bag = torch.randn(2, 5, 6)
    known = torch.ones(2, 5, dtype=torch.bool)
    known[0, 3:] = False
    vector, shares = pooling(bag, known)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert shares[0, 3:].sum() == 0
    short, _ = pooling(bag[:1, :3], known[:1, :3])
    torch.testing.assert_close(vector[:1], short)
    if kind == "mean":
        torch.testing.assert_close(vector[1], bag[1].mean(0))
    if kind == "max":
        torch.testing.assert_close(vector[0], bag[0, :3].amax(0))
    order = torch.tensor([4, 2, 0, 1, 3])  # a bag has no order
    torch.testing.assert_close(pooling(bag[1:, order], known[1:])[0], vector[1:])


def test_attention_finds_the_one_that_matters() -> None:
    """Bags are positive where one of eight vectors has a large first feature."""
    torch.manual_seed(0)
    pooling, head = InstancePooling(4, "attention", 8), torch.nn.Linear(4, 1)
    parameters = [*pooling.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, 0.02)

    def bags(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        bag, place = torch.randn(count, 8, 4) * 0.3, torch.randint(8, (count,))
        positive = torch.arange(count) % 2
        bag[torch.arange(count), place, 0] += 3.0 * positive
        return bag, place, positive

    everything = torch.ones(64, 8, dtype=torch.bool)
    for _ in range(150):
        bag, _, positive = bags(64)
        scores = head(pooling(bag, everything)[0])[:, 0]
        error = torch.nn.functional.binary_cross_entropy_with_logits(
            scores, positive.float()
        )
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    bag, place, positive = bags(64)
    _, shares = pooling(bag, everything)
    right = shares.argmax(1) == place
    assert right[positive == 1].float().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resunet", {"channels": [8, 16]}),
        ("resnet", {}), ("swin", {}), ("vit", {}), ("resnet2d", NET), ("hybrid", {}),
        ("densenet", {}),
    ],
)  # fmt: skip
def test_every_encoder_learns_classes_types_and_slices(
    name: str, settings: dict, phantom_store: Store
) -> None:
    """Paper: S2DC classification; Hundred Million IV-E; Hundred Million Table IV."""
    from homolog.backbones import BACKBONES

    settings = settings or dict(BACKBONES.get(name).SMALL)
    cases = [
        CaseRef(phantom_store, replace(card, target=("a|b", "a", "no finding")[n % 3],
                                       types="t" if n == 0 else None))
        for n, card in enumerate(phantom_store.cards)
    ]  # fmt: skip
    task = Classify(
        ClassifyConfig(weight_slices=0.5, slices=12, hidden=8, pooling="mean_and_max")
    )
    backbone = build(name, settings)
    spec = task.describe(cases, backbone, CPU)
    network = task.network(backbone, spec)
    module = task.module(network, spec)
    feed = Feed(
        cases, module.views(), batch_size=2, seed=0, threads=0,
        targets=task.targets(cases, spec),
    )  # fmt: skip
    terms = module.losses(feed.views(feed.batch(0), CPU), 0.5)
    assert set(terms) == {"binary_cross_entropy", "types", "slices"}
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert network.slices is not None
    assert all(p.grad is not None for p in network.slices.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        rough = module.losses(feed.views(feed.batch(0), CPU), 0.5)
    sum(rough.values()).backward()  # type: ignore[union-attr]
    for term, value in rough.items():
        torch.testing.assert_close(value, terms[term], rtol=0.2, atol=0.2)
    row = drain(task.score(Trained(network, spec, {}, CPU), cases[0]))[0]
    assert len(row["known"]["slices"]) == len(row["known"]["presence"]) > 1


def test_a_one_slice_window_does_not_take_volumes(phantom_store: Store) -> None:
    cases = [
        CaseRef(phantom_store, replace(card, target="ab"[n % 2]))
        for n, card in enumerate(phantom_store.cards)
    ]
    task = Classify(ClassifyConfig(window=(1, 32, 32)))
    with pytest.raises(UnusableInput, match="window=1,32,32 is of one slice, but"):
        task.describe(cases, build("resnet2d", NET), CPU)
    bare = [replace(c.card, has_label=False) for c in cases]
    unlabelled = [CaseRef(phantom_store, card) for card in bare]
    task = Classify(ClassifyConfig(weight_slices=1.0))
    with pytest.raises(UnusableInput, match="needs scans with label maps or boxes"):
        task.describe(unlabelled, build("resnet2d", NET), CPU)


def test_the_head_may_have_two_layers() -> None:
    """Paper: Joint 3D classification."""
    network = ClassifyNetwork(build("resnet2d", NET), 3, hidden=7)
    widths = [m.out_features for m in network.head if isinstance(m, torch.nn.Linear)]
    assert widths == [7, 3]
