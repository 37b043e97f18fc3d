"""Probing frozen features: what is known is found, nothing else, and on others."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from homolog.backbones import build
from homolog.cli import cli
from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request, drain
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.methods.base import DENSE, Embedder
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import save_model
from homolog.nn.decoders import features_decoder, suited_decoder
from homolog.probe import voxels as voxel_probe
from homolog.probe.cases import choose_roles, draw_voxels, labels_of
from homolog.probe.config import ProbeConfig
from homolog.probe.learners import Taught, fit_linear
from homolog.probe.scans import ScanProbe
from homolog.probe.scores import ScanScores, VoxelScores, student
from homolog.probe.sources import AllMaps, EncoderSource, NoNetwork, Source
from homolog.probe.study import probe_encoders, random_like
from homolog.probe.verdict import best_of, verdict
from homolog.probe.voxels import VoxelProbe
from homolog.store.learnt_spacing import Learnt, LearntSpacing
from homolog.tasks.few_voxels.scan import features_at
from memory_store import MemoryStore
from named_models import keep_apart

LABELS = 3
CPU = torch.device("cpu")


class Cohort(MemoryStore):
    """Patients with balls of three labels; every patient has two scans."""

    def __init__(self, patients: int = 6) -> None:
        super().__init__()
        self.hash, self.preprocessing = "cohort", None
        grid = np.indices((12, 16, 16)).reshape(3, -1).T
        for patient in range(patients):
            rng = np.random.default_rng(patient)
            for part in range(2):
                label = np.zeros((12, 16, 16), np.int16)
                for value in range(1, LABELS + 1):
                    middle = rng.uniform((3, 4, 4), (9, 12, 12))
                    near = np.linalg.norm(grid - middle, axis=1) < 3
                    label[near.reshape(label.shape)] = value
                image = rng.integers(-200, 200, (1, *label.shape))
                self.add(image, Affine.scale((2.0, 1.0, 1.0)), label)
                self.cards[-1] = dataclasses.replace(
                    self.cards[-1], subject=f"patient {patient}",
                    split="test" if patient >= patients - 3 else "train",
                    source_hash=f"{patient}-{part}", target=f"class {patient % 2}",
                )  # fmt: skip

    def card(self, case: str) -> Any:
        return next(c for c in self.cards if c.id == case)


class Told(Source):
    """Features made of the true label (one number each), of noise, or of the case."""

    name, parts, main = "told", ("label", "noise", "case"), "label"
    salt = 0
    sets: Mapping[str, Any] = {
        "label": (0,),
        "noise": (1,),
        "both": (0, 1),
        "case": (2,),
    }

    def vectors(self, case: CaseRef, voxels: Any) -> list[Any]:
        label = np.asarray(case.store.label(case.card.id))[tuple(voxels.T)]
        number = np.full((len(voxels), 1), int(case.card.id[-3:]), np.float32)
        return [self._codes(label), self._noise(case, voxels), number]

    def scores(
        self, case: CaseRef, weights: Sequence[Any]
    ) -> Iterator[tuple[slice, list[Any]]]:
        shape = case.card.shape
        for z in range(0, shape[0], 5):
            rows = slice(z, min(z + 5, shape[0]))
            index = np.indices((rows.stop - z, *shape[1:])).reshape(3, -1).T
            found = self.vectors(case, index + np.array([z, 0, 0]))
            yield (
                rows,
                [
                    (f @ w).reshape(rows.stop - z, *shape[1:], -1)
                    for f, w in zip(found, weights, strict=True)
                ],
            )

    def pooled(self, case: CaseRef) -> list[Any]:
        known = float(case.card.target[-1])
        rng = np.random.default_rng([self.salt, int(case.card.id[-3:])])
        noise = rng.normal(size=4).astype(np.float32)
        return [np.array([known], np.float32), noise, np.zeros(1, np.float32)]

    @staticmethod
    def _codes(label: Any) -> Any:
        return np.eye(LABELS + 1, dtype=np.float32)[label]

    @staticmethod
    def _noise(case: CaseRef, voxels: Any) -> Any:
        rng = np.random.default_rng(int(case.card.id[-3:]))
        return rng.normal(size=(*case.card.shape, 4)).astype(np.float32)[
            tuple(voxels.T)
        ]


def roles_of(store: Any, config: ProbeConfig, patients: int | None = 2) -> Any:
    return choose_roles(store, lambda card: card.has_label, config, patients)


def probed(config: ProbeConfig) -> Any:
    roles = roles_of(Cohort(), config)
    probe = drain(VoxelProbe.draw(roles, labels_of(roles.taught), config))
    return probe, {s.features: s for s in drain(probe.run(Told()))}


@pytest.fixture(scope="module")
def told() -> Any:
    return probed(ProbeConfig(voxels=40))


def test_a_feature_that_is_the_label_scores_one(told: Any) -> None:
    for name in ("label", "both"):
        for measure in ("linear", "dice"):
            assert told[1][name].figure(measure).value == pytest.approx(1.0)
    for measure in ("knn", "centroid"):
        assert told[1]["label"].figure(measure).value == pytest.approx(1.0)
    gain = told[1]["label"].figure("linear", [told[1]["label"]])
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_noise_scores_chance(told: Any) -> None:
    for measure in ("linear", "knn", "centroid"):
        found = told[1]["noise"].figure(measure)
        assert abs(found.value - 1 / (LABELS + 1)) < 0.06
    assert told[1]["noise"].figure("dice").value < 0.2
    ahead = told[1]["label"].figure("linear", [told[1]["noise"]])
    assert ahead.low > 0.6


def test_nobody_teaches_and_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Taught] = []

    def fit(taught: Taught, count: int) -> Any:
        seen.append(taught)
        return fit_linear(taught, count)

    monkeypatch.setattr(voxel_probe, "fit_linear", fit)
    for judge in ("test", "rest"):
        seen.clear()
        probe, _ = probed(ProbeConfig(voxels=10, judge=judge, dense=False))
        taught = {p.name for p in probe.roles.taught}
        judged = {p.name for p in probe.roles.judged}
        subjects = [
            {c.card.subject for p in side for c in p.cases}
            for side in (probe.roles.taught, probe.roles.judged)
        ]
        assert taught
        assert judged
        assert not subjects[0] & subjects[1]
        numbers = {int(c.card.id[-3:]) for p in probe.roles.taught for c in p.cases}
        # the last set tells each voxel's scan: both scans of two patients, no other
        assert set(seen[-1].vectors[:, 0].astype(int)) == numbers
        assert len(numbers) == 4
        # both scans of a patient are held out together
        for group in np.unique(seen[-1].groups):
            own = seen[-1].vectors[seen[-1].groups == group, 0]
            assert len({probe.taught[0].case.store.card(f"case_{int(n):03}").subject
                        for n in own}) == 1  # fmt: skip


def test_more_patients_hold_fewer_and_the_test_split_stays_out() -> None:
    store = Cohort(8)
    chosen = [
        {p.name for p in roles_of(store, ProbeConfig(), count).taught}
        for count in (1, 3, 5)
    ]
    assert chosen[0] < chosen[1] < chosen[2]
    roles = roles_of(store, ProbeConfig(), 99)
    assert "99 patients were to teach, there are 5." in roles.remarks
    assert all(c.card.split == "test" for p in roles.judged for c in p.cases)
    other = roles_of(store, ProbeConfig(seed=4), 3)
    assert {p.name for p in other.taught} != chosen[1]
    assert len(choose_roles(store, lambda c: True, ProbeConfig(), 2, 2).judged) == 2


def test_drawn_voxels_have_their_label_and_stand_for_all() -> None:
    store = Cohort(1)
    case = CaseRef(store, store.cards[0])  # type: ignore[arg-type]
    truth = np.asarray(store.label(case.card.id))
    drawn = draw_voxels(case, (0, 1, 2, 3), 7, 30, seed=1)
    assert (truth[tuple(drawn.voxels.T)] == drawn.classes).all()
    sizes = np.bincount(drawn.classes, drawn.weight)
    assert sizes == pytest.approx(np.bincount(truth.ravel()))
    assert np.bincount(drawn.classes).tolist() == [30, 7, 7, 7]
    assert len(np.unique(drawn.voxels, axis=0)) == len(drawn.voxels)
    again = draw_voxels(case, (0, 1, 2, 3), 7, 30, seed=1)
    assert (again.voxels == drawn.voxels).all()


def test_a_label_that_nobody_taught_is_left_out_of_the_scores() -> None:
    config = ProbeConfig(voxels=20)
    store = Cohort()
    roles = roles_of(store, config)
    probe = drain(VoxelProbe.draw(roles, (0, 1, 2), config))
    scores = {s.features: s for s in drain(probe.run(Told()))}["label"]
    assert scores.tables["dice"].shape[1] == 3
    assert scores.figure("dice").value == pytest.approx(1.0)


def test_a_case_that_cannot_be_read_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, config = Cohort(), ProbeConfig(voxels=10, dense=False)
    roles = roles_of(store, config)
    broken = {roles.judged[0].cases[0].card.id, roles.taught[0].cases[1].card.id}
    image = store.image

    def read(case: str) -> Any:
        if case in broken:
            raise JobError(f"{case} does not unpack.")
        return image(case)

    monkeypatch.setattr(store, "image", read)
    events = list(_result(VoxelProbe.draw(roles, labels_of(roles.taught), config)))
    probe = events.pop()
    told = [e.text for e in events if isinstance(e, Note)]
    assert set(told) == {f"left out: {c} does not unpack." for c in broken}
    used = {s.case.card.id for s in (*probe.taught, *probe.judged)}
    assert not used & broken
    assert len(probe.roles.judged) == len(roles.judged)
    assert drain(probe.run(Told()))[0].figure("linear").value == pytest.approx(1.0)
    broken |= {c.card.id for p in roles.judged for c in p.cases}
    with pytest.raises(UnusableInput, match="left to judge"):
        drain(VoxelProbe.draw(roles, labels_of(roles.taught), config))


def _result(job: Job[Any]) -> Iterator[Any]:
    """Its events, then its result."""
    yield (yield from job)


def test_one_patient_who_teaches_is_divided_into_blocks() -> None:
    config = ProbeConfig(voxels=20, patients=1, dense=False)
    roles = roles_of(Cohort(), config, 1)
    probe = drain(VoxelProbe.draw(roles, labels_of(roles.taught), config))
    assert drain(probe.run(Told()))[0].figure("linear").value == pytest.approx(1.0)


def test_intervals_are_students() -> None:
    found = student(np.array([0.2, 0.4, 0.6, np.nan]))
    assert found.value == pytest.approx(0.4)
    assert found.high - found.value == pytest.approx(4.3027 * 0.2 / 3**0.5, rel=1e-4)
    assert student(np.array([0.3])).low is None
    assert student(np.array([np.nan])).value is None


# --- classes of whole scans


def test_classes_of_scans_are_told_apart_by_what_tells_them() -> None:
    store = Cohort(12)
    roles = roles_of(store, ProbeConfig(judge="rest"), 6)
    probe = ScanProbe.of(roles, ProbeConfig())
    assert probe.labels == ("class 0", "class 1")
    scores = {s.features: s for s in drain(probe.run(Told()))}
    for measure in ("linear", "knn", "centroid", "auc"):
        assert scores["label"].figure(measure).value == pytest.approx(1.0)
    gain = scores["label"].figure("auc", [scores["noise"]])
    assert gain.value == pytest.approx(1 - scores["noise"].figure("auc").value)
    assert gain.low < gain.value < gain.high
    found = []
    for salt in range(1, 6):
        source = Told()
        source.salt, source.sets = salt, {"noise": (1,)}
        scores = {s.features: s for s in drain(probe.run(source))}
        found.append(scores["noise"].value("auc", np.arange(12)))
    assert abs(np.mean(found) - 0.5) < 0.2


def test_several_findings_are_each_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Cohort(8)
    texts = ["no finding", "a", "b", "a|b"]
    for i, card in enumerate(store.cards):
        store.cards[i] = dataclasses.replace(card, target=texts[i // 2 % 4])
    probe = ScanProbe.of(roles_of(store, ProbeConfig(judge="rest"), 4), ProbeConfig())
    assert probe.several
    assert probe.labels == ("a", "b")

    def pooled(self: Any, case: CaseRef) -> list[Any]:
        own = np.array([n in case.card.target for n in ("a", "b")], np.float32)
        own[1] *= "no " not in case.card.target
        return [own, own, own]

    monkeypatch.setattr(Told, "pooled", pooled)
    scores = drain(probe.run(Told()))[0]
    assert scores.figure("auc").value == pytest.approx(1.0)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    chance, truth = (
        rng.random((30, 2)),
        np.eye(2, dtype=np.int64)[rng.integers(2, size=30)],
    )
    chance = chance.round(1)  # ties count half
    scores = ScanScores(
        "", "", 1, 1.0, (), {"auc": chance}, truth, groups=np.arange(30)
    )
    pairs = [
        (chance[i, 0] > chance[j, 0]) + 0.5 * (chance[i, 0] == chance[j, 0])
        for i in np.flatnonzero(truth[:, 0])
        for j in np.flatnonzero(truth[:, 0] == 0)
    ]
    assert scores.by_label("auc")[0] == pytest.approx(np.mean(pairs))


# --- encoders


def dense(encoder: Path, **changes: Any) -> DenseEncoder:
    found = DenseEncoder.of(load_encoder(encoder), EmbedConfig(precision="fp32"), CPU)
    return dataclasses.replace(found, **changes)


def test_a_scan_is_labelled_as_its_voxels_are_one_by_one(
    encoder: Path, phantom_store: Any, tmp_path: Path
) -> None:
    """Scores of cells brought to the voxels are those of features at the voxels."""
    case = CaseRef(phantom_store, phantom_store.cards[0])
    rng = np.random.default_rng(0)
    coarser = Learnt(LearntSpacing.of_cases([
        dataclasses.replace(case.card, affine=Affine.scale((11.0, 9.0, 8.0)))
    ]))  # fmt: skip
    for learnt in (Learnt(), coarser):
        made = dense(encoder, learnt=learnt)
        made = dataclasses.replace(made, embedder=AllMaps(made.embedder).eval())
        source = EncoderSource("x", made, tmp_path)
        assert drain(source.prepare(case))
        index = np.indices(case.card.shape).reshape(3, -1).T
        parts = source.vectors(case, index)
        weights = [rng.normal(size=(p.shape[1], 2)).astype(np.float32) for p in parts]
        slabs = list(source.scores(case, weights))
        for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            whole = np.concatenate([values[i] for _, values in slabs])
            assert np.allclose(whole.reshape(-1, 2), part @ weight, atol=1e-4)
    grey = NoNetwork([(-1.0, 0.0, 1.0)])
    parts = grey.vectors(case, index)
    some = rng.permutation(len(index))[:5]
    one_by_one = grey._grey(case).at(index[some])
    assert np.allclose(parts[0][some], one_by_one, atol=1e-4)
    weights = [rng.normal(size=(p.shape[1], 2)).astype(np.float32) for p in parts]
    for i, part in enumerate(parts):
        whole = np.concatenate([v[i] for _, v in grey.scores(case, weights)])
        assert np.allclose(whole.reshape(-1, 2), part @ weights[i], atol=1e-3)


def test_maps_are_made_once_and_kept(
    encoder: Path, phantom_store: Any, tmp_path: Path
) -> None:
    case = CaseRef(phantom_store, phantom_store.cards[1])
    made = dense(encoder)
    source = EncoderSource(
        "x", dataclasses.replace(made, embedder=AllMaps(made.embedder).eval()), tmp_path
    )
    stopping = source.prepare(case)
    assert isinstance(next(stopping), Progress)
    with pytest.raises(StopIteration) as ended:
        stopping.send(Request.STOP)
    assert ended.value.value is False
    assert not list(tmp_path.iterdir())  # nothing half-written
    assert list(source.prepare(case))
    assert len(list(tmp_path.iterdir())) == 2 * len(source.parts) == 6
    assert not list(source.prepare(case))


def test_all_maps_are_the_networks_own_and_the_heads(encoder: Path) -> None:
    backbone = load_encoder(encoder).backbone
    torch.manual_seed(1)
    heads = {"fine": nn.Conv3d(8, 5, 1)}
    embedder = Embedder(backbone, {"fine": 0}, heads).eval()
    every, image = AllMaps(embedder).eval(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        found, own = every(image), embedder(image)
        raw = [nn.functional.normalize(m, dim=1) for m in backbone.maps(image)]
    assert list(found) == ["stride 2", "stride 4", "stride 8", "embedding fine"]
    for name, values in zip(every.plain, raw, strict=True):
        assert torch.allclose(found[name], values, atol=1e-5)
    assert torch.equal(found["embedding fine"], own["fine"])


def test_a_decoder_is_one_map_more(encoder: Path) -> None:
    backbone = load_encoder(encoder).backbone
    torch.manual_seed(1)
    decoder, other = (
        features_decoder(backbone).eval(),
        features_decoder(backbone).eval(),
    )
    heads = {"fine": nn.Conv3d(8, 5, 1)}
    plain, image = Embedder(backbone, {"fine": 0}, heads), torch.randn(1, 1, 16, 16, 16)
    every = AllMaps(plain, decoder, (2, 2, 2)).eval()
    with torch.no_grad():
        found, maps = every(image), backbone.maps(image)
        cells = decoder.cells(image, maps, (2, 2, 2))
        alone = AllMaps(plain).eval()(image)
    assert list(found) == [
        "stride 2", "stride 4", "stride 8", "decoder stride 2", "embedding fine",
    ]  # fmt: skip
    assert torch.equal(found["decoder stride 2"], nn.functional.normalize(cells, dim=1))
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    # an embedding made of a decoder keeps its own
    read = Embedder(backbone, {"fine": DENSE}, {}, None, decoder, (4, 4, 4))
    every = AllMaps(read, other, (2, 2, 2)).eval()
    assert every.decoder is decoder
    assert every.dense == ("decoder stride 4",)


def test_what_a_decoder_knows_is_told_beside_the_maps(
    encoder: Path, phantom_store: Any, tmp_path: Path
) -> None:
    loaded = load_encoder(encoder)
    card = {k: v for k, v in loaded.card.items() if k != "sha256"}
    state = suited_decoder(loaded.backbone, 1).state_dict()
    both = save_model(
        tmp_path / "both" / "model", loaded.backbone.state_dict(), card,
        extra={"decoder": state},
    )  # fmt: skip
    result, _ = run(phantom_store, [both], tmp_path, decoder=4, dense=False)
    (entry,) = result["encoders"]
    assert [s["features"] for s in entry["features"]] == [
        "stride 2", "stride 4", "stride 8", "decoder stride 4", "all maps",
    ]  # fmt: skip
    assert entry["main"] == "all maps"
    assert "decoder stride 4 (" in entry["verdict"]
    sets = {s["features"]: s["linear"]["value"] for s in entry["features"]}
    weights = {(r["features"], r["weights"]) for r in result["rows"]}
    assert ("decoder stride 4", "random 1") in weights
    without, told = run(phantom_store, [encoder], tmp_path, decoder=4, dense=False)
    assert any(isinstance(e, Note) and "without a decoder" in e.text for e in told)
    (other,) = without["encoders"]
    alone = {s["features"]: s["linear"]["value"] for s in other["features"]}
    assert alone == {k: v for k, v in sets.items() if k != "decoder stride 4"}


def test_random_weights_are_another_network(encoder: Path) -> None:
    loaded, made = load_encoder(encoder), dense(encoder)
    state = torch.random.get_rng_state()
    others = [random_like(loaded, made, seed) for seed in (0, 1, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    own = loaded.backbone.state_dict()
    for other in others:
        weights = other.embedder.backbone.state_dict()
        assert {k: v.shape for k, v in weights.items()} == {
            k: v.shape for k, v in own.items()
        }
    ids = [made.encoder_id, *(o.encoder_id for o in others)]
    assert len(set(ids)) == 3
    assert ids[2] == ids[3]
    assert len({o.key for o in others}) == 2


SMALL = ProbeConfig(voxels=10, random=1, patients=2, most=2)


def run(store: Any, encoders: Sequence[Path], folder: Path, **changes: Any) -> Any:
    config = dataclasses.replace(SMALL, **changes)
    job: Job[Any] = probe_encoders(
        store, encoders, config, EmbedConfig(overlap=0.0, precision="fp32"),
        device="cpu", folder=folder,
    )  # fmt: skip
    told: list[Any] = []
    while True:
        try:
            told.append(next(job))
        except StopIteration as end:
            return end.value, told


def plain(result: Any) -> Any:
    """Without the seconds it took."""
    kept = [
        {
            **{k: v for k, v in e.items() if k != "seconds"},
            "cost": {k: v for k, v in e["cost"].items() if k != "seconds_per_scan"},
        }
        for e in result["encoders"]
    ]
    return json.loads(json.dumps({**result, "encoders": kept}))


def test_the_same_seed_gives_the_same_answer(
    encoder: Path, phantom_store: Any, tmp_path: Path
) -> None:
    first, _ = run(phantom_store, [encoder], tmp_path / "a")
    again, _ = run(phantom_store, [encoder], tmp_path / "b")
    kept, _ = run(phantom_store, [encoder], tmp_path / "a")
    assert plain(first) == plain(again) == plain(kept)
    other, _ = run(phantom_store, [encoder], tmp_path / "a", seed=3)
    assert other["taught"] != first["taught"]
    (entry,) = first["encoders"]
    names = [s["features"] for s in entry["features"]]
    assert names == ["stride 2", "stride 4", "stride 8", "all maps"]
    cost = entry["cost"]
    assert cost["seconds_per_scan"] > 0
    assert cost["memory_bytes"] > 4 * cost["parameters"] > 0
    main = next(s for s in entry["features"] if s["features"] == "all maps")
    assert main["logme"]["value"] == pytest.approx(main["logme"]["random"], abs=0.3)
    # these weights are random too: they are not said to have learnt
    assert entry["learnt"] is not True
    assert entry["verdict"] in first["verdict"]


def test_what_is_wrong_in_one_encoder_leaves_the_others(
    encoder: Path, phantom_store: Any, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    result, told = run(
        phantom_store, [tmp_path / "broken", encoder], tmp_path / "kept", dense=False
    )
    assert [f["encoder"] for f in result["failed"]] == [str(tmp_path / "broken")]
    assert len(result["encoders"]) == 1
    assert any(isinstance(e, Note) and "broken" in e.text for e in told)
    with pytest.raises(UnusableInput):
        run(phantom_store, [tmp_path / "broken"], tmp_path / "kept")


def test_a_verdict_says_what_the_figures_say() -> None:
    def entry(value: float, low: float, high: float, each: list[float]) -> Any:
        linear = {
            "value": value,
            "gain": {"value": (low + high) / 2, "low": low, "high": high},
            "random": {"value": float(np.mean(each)), "each": each},
        }
        sets = [{"features": n, "linear": linear} for n in ("stride 4", "all maps")]
        return {"name": "mine", "main": "all maps", "features": sets}

    none = [{"linear": {"value": v}} for v in (0.35, 0.5)]
    result = {"no_network": none, "chance": 0.2, "kind": "labels"}
    good = verdict(entry(0.61, 0.1, 0.3, [0.38, 0.4]), result)
    assert good["learnt"] is True
    for words in ("mine: learnt", "0.61 against 0.39 of random", "0.35 of grey values"):
        assert words in good["verdict"]
    assert "place in the body" not in good["verdict"]
    # ahead of their mean, but not of each of them
    assert verdict(entry(0.61, 0.1, 0.3, [0.2, 0.62]), result)["learnt"] is False
    weak = verdict(entry(0.3, -0.1, 0.1, [0.3]), result)
    assert weak["learnt"] is False
    for words in ("nothing learnt that shows", "Grey values alone", "reaches 0.50"):
        assert words in weak["verdict"]
    assert (
        "worse than random" in verdict(entry(0.3, -0.2, -0.1, [0.4]), result)["verdict"]
    )
    two = [{"name": n, "value": v, "learnt": True} for n, v in (("a", 0.6), ("b", 0.5))]
    tables = [
        VoxelScores("", "", 1, 1.0, (), {"linear": np.array([[v], [v + d]])})
        for v, d in ((0.6, 0.001), (0.5, 0.0))
    ]
    assert "a (0.60), ahead of b (0.50)" in best_of(
        two, tables[0].figure("linear", tables[1:])
    )
    same = tables[0].figure("linear", tables[:1])
    assert "cannot be told apart" in best_of(two, same)


# --- the command


def test_the_command_tells_ranks_and_writes(
    encoder: Path, phantom_store: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "other"
    copy.symlink_to(encoder)
    words = [
        "probe", phantom_store.path, "--encoder", encoder, copy, "--patients", 2,
        "--random", 1, "--voxels", 10, "--most", 2, "--out", tmp_path / "out",
        "--features", tmp_path / "kept", "--device", "cpu", "--decoder", 8, "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(cli, [str(w) for w in [*words, "--decoder", 3]])
    assert done.exit_code == 2
    assert "'3' is not one of" in done.output
    done = CliRunner().invoke(cli, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    result = json.loads(done.output.splitlines()[-1])
    assert len(result["encoders"]) == 2
    assert "cannot be told apart" in result["verdict"]
    assert "only 2 patients can be judged" in " ".join(result["warnings"])
    html = Path(result["html"]).read_text(encoding="utf-8")
    assert "What do these encoders know?" in html
    assert "<svg" in html
    with Path(result["csv"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {r["weights"] for r in rows} == {"", "own", "random 1"}
    assert {r["measure"] for r in rows} == {"linear", "knn", "centroid", "dice"}
    own = [
        float(r["value"]) for r in rows
        if r["measure"] == "linear" and r["features"] == "all maps"
        and r["encoder"] == result["encoders"][0]["name"] and r["weights"] == "own"
    ]  # fmt: skip
    assert np.mean(own) == pytest.approx(result["encoders"][0]["value"], abs=0.05)
    assert json.loads(Path(result["json"]).read_text())["verdict"] == result["verdict"]


def test_all_models_known_by_name_are_ranked(
    encoder: Path, phantom_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shipped = keep_apart(monkeypatch, tmp_path)
    words = [
        "probe", str(phantom_store.path), "--patients", "1", "--random", "1",
        "--voxels", "10", "--most", "2", "--no-dense", "--device", "cpu",
        "--features", str(tmp_path / "kept"), "--json",
    ]  # fmt: skip
    empty = CliRunner().invoke(cli, words)
    assert isinstance(empty.exception, ConfigError)
    assert "is empty" in str(empty.exception)
    shutil.copytree(encoder, own / "mine")
    network = {"name": "resunet", "config": {"channels": [4, 8]}}
    other = build("resunet", network["config"])
    card = {"kind": "encoder", "licence": "CC BY-NC 4.0", "backbone": network}
    save_model(shipped / "body-ct", other.state_dict(), card)
    (own / "bad").mkdir()
    (own / "bad" / "model.json").write_text("{}")
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 1  # one of them could not be probed
    result = json.loads(done.stdout.splitlines()[-1])
    assert {e["name"] for e in result["encoders"]} == {"mine", "body-ct"}
    values = [e["value"] for e in result["encoders"]]
    assert values == sorted(values, reverse=True)
    assert "behind" in result["encoders"][1]
    assert [Path(f["encoder"]).name for f in result["failed"]] == ["bad"]
    assert "body-ct: licence: CC BY-NC 4.0 (not for commercial use)" in done.stdout
    assert "body-ct: licence: CC BY-NC 4.0" in done.stderr
    by_name = CliRunner().invoke(
        cli, [*words[:2], "--encoder", "mine", *words[2:]], standalone_mode=False
    )
    (entry,) = json.loads(by_name.stdout.splitlines()[-1])["encoders"]
    assert entry["path"] == str(own / "mine")


def test_a_store_without_labels_is_told(
    encoder: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    prepared = CliRunner().invoke(
        cli, ["prepare", str(phantom_folder / "imagesTr"), "--out", str(tmp_path / "s")]
    )
    assert prepared.exit_code == 0, prepared.output
    done = CliRunner().invoke(
        cli, ["probe", str(tmp_path / "s"), "--encoder", str(encoder)]
    )
    assert isinstance(done.exception, UnusableInput)
    assert "no classes of whole scans" in str(done.exception)
    gone = CliRunner().invoke(cli, ["probe", "nowhere", "--encoder", str(encoder)])
    assert isinstance(gone.exception, FileNotFoundError)
    few = CliRunner().invoke(cli, ["probe", "s", "--encoder", "e", "--patients", "0"])
    assert few.exit_code == 2
    assert "--patients must be" in few.output


def test_features_at_a_voxel_are_those_read(encoder: Path) -> None:
    """The reading that few painted voxels use is linear: no length is made one."""
    from homolog.scans.volume import FeatureMap

    data = np.zeros((2, 1, 1, 2), np.float32)
    data[0, 0, 0, 0] = data[1, 0, 0, 1] = 1.0
    features = FeatureMap(data, Affine.identity())
    assert features_at(features, np.array([[0.0, 0.0, 0.5]])).tolist() == [[0.5, 0.5]]
