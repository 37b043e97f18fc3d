"""A damaged store is told by name, and mended from its scans where these are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from homolog.cli import main
from homolog.errors import JobError, UnusableInput
from homolog.events import Note, drain
from homolog.feed.batches import Feed
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store import card as card_file
from homolog.store.build import write_store
from homolog.store.care import care_for
from homolog.store.pairs import read_pairs, write_depths
from homolog.store.store import Store
from homolog.views.view import ViewSpec


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three labelled scans, the second with a box."""
    sources, affine = [], Affine.of((1.0, 1.5, 2.0))
    for number in range(3):
        data = np.random.default_rng(number).integers(0, 800, (1, 20, 24, 28))
        labels = np.zeros((20, 24, 28), np.uint8)
        labels[4:9, 5:11, 6:13] = 1
        image = tmp_path / f"case_{number}.nii.gz"
        write_volume(Volume(data.astype(np.int16), affine), image)
        write_labels(LabelMap(labels, affine), tmp_path / f"label_{number}.nii.gz")
        box = {"label": "lesion", "min": [1.0, 2.0, 3.5], "max": [4.0, 6.0, 7.0]}
        sources.append(
            CaseSource(
                id=f"case_{number}", image=image, modality="MR", subject=str(number),
                label=tmp_path / f"label_{number}.nii.gz",
                boxes=(box,) if number == 1 else (), label_names={1: "one"},
            )
        )  # fmt: skip
    drain(write_store(sources, tmp_path / "store", seed=4))
    return tmp_path / "store"


def damage(path: Path) -> bytes:
    """Flip a bit in the middle; what was there before."""
    whole = path.read_bytes()
    bad = bytearray(whole)
    bad[len(bad) // 2] ^= 8
    path.write_bytes(bad)
    return whole


def unsealed(folder: Path) -> None:
    """A card as earlier versions wrote it."""
    path = folder / "card.json"
    plain = json.loads(path.read_text())
    for name in ("checksums", "sha256"):
        plain.pop(name)
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "points.npy"])
def test_a_damaged_file_is_told_and_mended(store: Path, name: str) -> None:
    path = store / "cases" / "case_1" / name
    wanted, before = damage(path), Store.open(store)
    report = drain(care_for(store))
    assert [(d["case"], d["file"]) for d in report.damaged] == [("case_1", name)]
    assert "its scan is there" in report.problems[0]
    report = drain(care_for(store, repair=True))
    assert (report.mended, report.problems) == (["case_1"], [])
    assert path.read_bytes() == wanted
    assert Store.open(store).hash == before.hash
    assert Store.open(store).cards == before.cards
    assert drain(care_for(store)).damaged == []


def test_a_damaged_case_is_made_anew_by_prepare(store: Path) -> None:
    sources = [
        CaseSource(
            id=c.id, image=Path(c.source), label=Path(str(c.label_source)),
            modality="MR", subject=c.subject, label_names={1: "one"},
        )
        for c in Store.open(store).cards
    ]  # fmt: skip
    wanted = damage(store / "cases" / "case_2" / "label.b2nd")
    job, notes = write_store(sources, store, seed=4), []
    while True:
        try:
            event = next(job)
        except StopIteration as stop:
            result = stop.value
            break
        notes += [event.text] if isinstance(event, Note) else []
    assert (result["built"], result["reused"]) == (1, 2)
    assert any("case_2: label.b2nd was damaged: " in n for n in notes)
    assert (store / "cases" / "case_2" / "label.b2nd").read_bytes() == wanted


def test_a_training_stops_at_the_damaged_case_by_name(store: Path) -> None:
    damage(store / "cases" / "case_1" / "image.b2nd")
    opened = Store.open(store)
    cases = [CaseRef(opened, card) for card in opened.cards]
    feed = Feed(cases, {"view": ViewSpec((8, 8, 8))}, batch_size=3, seed=0, threads=0)
    with pytest.raises(
        JobError, match=r"case 'case_1': .*image\.b2nd is damaged: chunk 1 of 1"
    ):
        feed.batch(0)


def test_what_cannot_be_mended_says_why(store: Path, tmp_path: Path) -> None:
    damage(store / "cases" / "case_1" / "image.b2nd")
    damage(store / "cases" / "case_2" / "image.b2nd")
    (tmp_path / "case_1.nii.gz").unlink()
    other = np.random.default_rng(9).integers(0, 800, (1, 20, 24, 28))
    write_volume(
        Volume(other.astype(np.int16), Affine.of((1.0, 1.5, 2.0))),
        tmp_path / "case_2.nii.gz",
    )
    report = drain(care_for(store, repair=True))
    assert report.mended == []
    assert "case_1.nii.gz" in report.problems[0]
    assert "has changed since; run prepare again" in report.problems[1]
    assert (store / "cases" / "case_1" / "image.b2nd").is_file()


def test_a_changed_card_is_told(store: Path) -> None:
    path = store / "cases" / "case_0" / "card.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "scale": plain["scale"] * 2}))
    with pytest.raises(UnusableInput, match=r"case 'case_0' .* damaged"):
        Store.open(store)
    (found,) = drain(care_for(store)).damaged
    assert (found["case"], found["file"]) == ("case_0", "card.json")


def test_a_store_of_an_earlier_version_opens_and_gets_checksums(store: Path) -> None:
    before = Store.open(store)
    for card in before.cards:
        unsealed(store / "cases" / card.id)
    old = Store.open(store)
    assert np.asarray(old.image("case_0")).shape == (1, 20, 24, 28)
    assert old.hash == before.hash
    report = drain(care_for(store))
    assert (len(report.unsealed), report.problems) == (3, [])
    assert "no checksums" in report.hints[0]
    assert len(drain(care_for(store, repair=True)).sealed) == 3
    assert Store.open(store).cards == before.cards


def test_labels_of_an_earlier_version_are_counted(store: Path) -> None:
    from homolog.store.arrays import write_array

    folder = store / "cases" / "case_0"
    unsealed(folder)
    labels = np.asarray(Store.open(store).label("case_0")).copy()
    labels[0, 0, 0] = 1
    write_array(labels, folder / "label.b2nd")
    plain = json.loads((folder / "card.json").read_text())
    plain["files"]["label.b2nd"] = (folder / "label.b2nd").stat().st_size
    (folder / "card.json").write_text(json.dumps(plain))
    (found,) = drain(care_for(store)).damaged
    assert "other numbers of labels" in found["what"]


def test_cases_that_stay_get_their_checksums_from_prepare(
    store: Path, tmp_path: Path
) -> None:
    unsealed(store / "cases" / "case_0")
    card = Store.open(store).card("case_1")
    source = CaseSource(
        id=card.id, image=Path(card.source), label=Path(str(card.label_source)),
        modality="MR", subject="1", label_names={1: "one"},
    )  # fmt: skip
    drain(write_store([source], store, seed=4))
    assert Store.open(store).card("case_0").checksums["image.b2nd"]


def test_depths_have_checksums_and_are_made_again(store: Path) -> None:
    opened = Store.open(store)
    pairs = [(opened, card) for card in opened.cards]
    drain(write_depths(pairs))
    folder = store / "cases" / "case_0"
    damage(folder / "depth.b2nd")
    depth = opened.depth(opened.card("case_0"))
    assert depth is not None
    with pytest.raises(JobError, match=r"depth\.b2nd is damaged"):
        np.asarray(depth)
    assert drain(care_for(store)).problems == ["case_0: depth.b2nd damaged."]
    assert drain(care_for(store, repair=True)).problems == []
    assert opened.depth(opened.card("case_0")) is None


def test_a_damaged_table_of_places_is_told(
    phantom_store: Store, tmp_path: Path
) -> None:

    shutil.copytree(phantom_store.path, tmp_path / "store")
    damage(tmp_path / "store" / "pairs" / "table.npy")
    with pytest.raises(UnusableInput, match="checksum"):
        read_pairs(tmp_path / "store")
    assert "homolog align" in drain(care_for(tmp_path / "store")).problems[0]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**6, 10**6, 10**6]},
        {"shape": [20, 24, -28]},
        {"channels": 0},
        {"scale": 0.0},
        {"offset": float("nan")},
        {"foreground": [[0, 0, 0], [20, 24, 280]]},
        {"files": {"image.b2nd": 10, "../../secret": 3}},
        {"label_values": ["one"]},
        {"affine": "none"},
    ],
)
def test_a_card_that_cannot_be_is_refused(
    store: Path, change: dict[str, object]
) -> None:
    path = store / "cases" / "case_0" / "card.json"
    plain = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps(card_file.signed(plain)))
    with pytest.raises(UnusableInput, match=r"case 'case_0' .* damaged"):
        Store.open(store)


@pytest.mark.parametrize("name", ["../case_0", "/etc", "a/b", ".new-x", ""])
def test_a_list_of_cases_does_not_lead_out_of_the_store(store: Path, name: str) -> None:
    path = store / "store.json"
    contents = json.loads(path.read_text())
    contents["cases"][name] = contents["cases"].pop("case_0")
    path.write_text(json.dumps(contents))
    with pytest.raises(UnusableInput, match=r"store\.json is damaged"):
        Store.open(store)


def test_points_of_another_case_are_refused(store: Path) -> None:
    folder = store / "cases" / "case_0"
    unsealed(folder)
    rows = np.load(folder / "points.npy")
    rows[0, 1:] = 200
    np.save(folder / "points.npy", rows)
    with pytest.raises(JobError, match="no list of voxels of this case"):
        Store.open(store).label_points("case_0")


def test_the_command_says_it_all(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["homolog", "doctor", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        text = capfd.readouterr()
        return int(stop.value.code or 0), text.out, text.err

    status, text, _ = call(store)
    assert status == 0
    assert "3 cases" in text
    assert "all is well" in text
    damage(store / "cases" / "case_1" / "label.b2nd")
    status, text, _ = call(store, "--json")
    assert status == 1
    assert "damaged: case_1, label.b2nd: " in text
    told = json.loads(text.splitlines()[-1])
    assert told["stores"][0]["damaged"][0]["file"] == "label.b2nd"
    status, text, _ = call(store, "--repair")
    assert status == 0
    assert "made anew from their scans: case_1" in text
    assert call(store / "nowhere")[0] == 2
    assert call("--repair")[0] == 2
