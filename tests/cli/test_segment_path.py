"""From a folder of scans to labels on each scan's own grid, by commands alone."""

import csv
import json
import shutil

import numpy as np
import pytest

from homolog.cli import cli
from homolog.cli._run import exit_status
from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.scans.files import read_labels, read_scan
from homolog.scans.volume import LabelMap, Volume, reorder_axes
from homolog.scans.write import write_labels, write_volume

QUICK = (
    "--steps", "30", "--set", "training.batch_size=1",
    "--set", "training.dry_run_steps=0", "--set", "training.validate_every=15",
    "--set", "training.learning_rate=5e-3", "--set", "backbone.channels=8,16",
    "--set", "window=32,32,32", "--set", "intensity=0", "--device", "cpu",
)  # fmt: skip


def homolog(*words):
    """Run a command in this process; its exit status."""
    try:
        status = cli([str(w) for w in words], standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - as main does
        status = exit_status(error)
    return status if isinstance(status, int) else 0


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def write_ball(folder, name, seed):
    """A bright ball in noise, and its label."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(28)] * 3, indexing="ij"))
    centre = rng.uniform(10, 18, 3)[:, None, None, None]
    inside = ((grid - centre) ** 2).sum(0) < rng.uniform(36, 64)
    image = rng.normal(100, 20, inside.shape) + 300 * inside
    affine = Affine.of((1.5, 1.5, 1.5), rng.uniform(-50, 50, 3))
    write_volume(
        Volume(image[None].astype(np.int16), affine),
        folder / "imagesTr" / f"{name}_0000.nii.gz",
    )
    write_labels(
        LabelMap(inside.astype(np.uint8), affine),
        folder / "labelsTr" / f"{name}.nii.gz",
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("balls")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for i in range(8):
        write_ball(folder, f"ball_{i}", i)
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "ball": 1},
                "numTraining": 8,
                "file_ending": ".nii.gz",
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """A store and a model trained on it."""
    folder = tmp_path_factory.mktemp("work")
    assert homolog("prepare", cohort, "--out", folder / "store") == 0
    status = homolog(
        "finetune", "segment", folder / "store", "--encoder", "scratch",
        "--out", folder / "run", *QUICK,
    )  # fmt: skip
    assert status == 0
    return folder


def test_model_learns_the_ball(run, capsys):
    status = homolog(
        "evaluate", "--model", run / "run", run / "store", "--split", "all",
        "--out", run / "scores", "--device", "cpu", "--json",
    )  # fmt: skip
    assert status == 0
    result = last_line(capsys)
    assert result["cases"] == 8
    assert result["mean"]["dice"] > 0.8
    assert result["worst"]["dice"]["value"] <= result["mean"]["dice"]
    assert result["labels"]["ball"]["hd95_mm"] < 20
    assert len(result["seen"]) == 6  # five learnt from, one chose the weights
    with (run / "scores" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {"case", "label", "name", "dice", "iou", "nsd", "hd95_mm"} == set(rows[0])
    saved = json.loads((run / "scores" / "metrics.json").read_text())
    assert saved["mean"] == result["mean"]


def test_labels_come_back_under_the_scans_name_and_geometry(run, cohort, capsys):
    scans = sorted((cohort / "imagesTr").iterdir())[:2]
    out = run / "predicted"
    status = homolog(
        "predict", *scans, "--model", run / "run", "--out", out,
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert status == 0
    result = last_line(capsys)
    assert [p["scan"] for p in result["predicted"]] == [str(s) for s in scans]
    for scan in scans:
        labels, volume = read_labels(out / scan.name), read_scan(scan)
        assert labels.shape == volume.shape
        gap = np.abs(labels.affine.matrix - volume.affine.matrix).max()
        assert gap < 1e-5
        truth = read_labels(cohort / "labelsTr" / scan.name.replace("_0000", ""))
        both = (labels.data == 1) & (truth.data == 1)
        assert 2 * both.sum() / ((labels.data == 1).sum() + truth.data.sum()) > 0.7


def test_label_files_are_scored_against_label_files(run, cohort, capsys):
    out = run / "predicted_all"
    assert (
        homolog(
            "predict", cohort / "imagesTr", "--model", run / "run", "--out", out,
            "--device", "cpu",
        )
        == 0
    )  # fmt: skip
    assert homolog("evaluate", out, "--labels", cohort / "labelsTr", "--json") == 0
    by_files = last_line(capsys)
    assert by_files["cases"] == 8
    assert (out / "evaluation" / "metrics.csv").exists()
    homolog("evaluate", "--model", run / "run", run / "store", "--split", "all",
            "--device", "cpu", "--json")  # fmt: skip
    by_store = last_line(capsys)
    # nothing was resampled, so both grids are the scan's own
    assert by_files["mean"]["dice"] == pytest.approx(by_store["mean"]["dice"], abs=1e-6)
    assert by_files["mean"]["nsd"] == pytest.approx(by_store["mean"]["nsd"], abs=1e-6)


def test_orientation_of_the_file_does_not_move_the_labels(run, cohort, tmp_path):
    scan = sorted((cohort / "imagesTr").iterdir())[3]
    volume = read_scan(scan)
    orders = [((0, 1, 2), (0, 0, 0)), ((2, 0, 1), (1, 0, 1)), ((1, 2, 0), (0, 1, 1))]
    (tmp_path / "in").mkdir()
    for i, (axes, flips) in enumerate(orders):
        flips = tuple(map(bool, flips))
        turned = Volume(
            reorder_axes(volume.data, axes, flips).copy(),
            volume.affine.reorient(axes, flips, volume.shape),
        )
        write_volume(turned, tmp_path / "in" / f"turned_{i}.nii.gz")
    status = homolog("predict", tmp_path / "in", "--model", run / "run",
                     "--out", tmp_path / "out", "--device", "cpu")  # fmt: skip
    assert status == 0
    places = []
    for i in range(len(orders)):
        labels = read_labels(tmp_path / "out" / f"turned_{i}.nii.gz")
        mm = labels.affine.apply(np.argwhere(labels.data == 1))
        places.append(np.array(sorted(map(tuple, np.round(mm, 3)))))
    assert len(places[0]) > 50
    for other in places[1:]:
        assert np.allclose(other, places[0], atol=1e-2)


def test_one_bad_scan_does_not_stop_the_others(run, cohort, tmp_path, capsys):
    good = sorted((cohort / "imagesTr").iterdir())[0]
    shutil.copy(good, tmp_path / "good.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(good.read_bytes()[:2000])
    status = homolog(
        "predict", tmp_path / "broken.nii.gz", tmp_path / "good.nii.gz",
        "--model", run / "run", "--out", tmp_path / "out", "--device", "cpu", "--json",
    )  # fmt: skip
    assert status == 1
    result = last_line(capsys)
    assert [f["scan"] for f in result["failed"]] == [str(tmp_path / "broken.nii.gz")]
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    # labels keep their names
    assert written == ["good.labels.json", "good.nii.gz", "volumes.csv"]


def test_prediction_never_overwrites_its_scan(run, cohort, tmp_path):
    scan = tmp_path / "scan.nii.gz"
    shutil.copy(sorted((cohort / "imagesTr").iterdir())[0], scan)
    before = scan.read_bytes()
    status = homolog("predict", scan, "--model", run / "run", "--out", tmp_path)
    assert status == 2
    assert scan.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("finetune", "knit", "STORE", "--encoder", "scratch"), "unknown task 'knit'"),
        (("finetune", "segment", "NOWHERE", "--encoder", "scratch"), "not a finished"),
        (("finetune", "segment", "STORE", "--encoder", "NOWHERE"), "NOWHERE"),
        (("finetune", "segment", "STORE", "--encoder", "scratch", "--fold", "9/2"),
         "fold must be i/k"),
        (("finetune", "segment", "STORE", "--encoder", "scratch", "--set", "nosuch=1"),
         "no setting 'nosuch'"),
    ],
)  # fmt: skip
def test_wrong_words_end_with_status_2_and_leave_nothing(
    run, tmp_path, capsys, words, sentence
):
    words = [str(run / "store") if w == "STORE" else w for w in words]
    assert homolog(*words, "--out", tmp_path / "run", "--device", "cpu") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluate_wants_a_model_or_labels(run, capsys):
    assert homolog("evaluate", run / "store") == 2
    assert "either --model RUN or --labels DIR" in capsys.readouterr().err


def test_missing_predictions_are_an_error_not_a_better_mean(run, cohort, tmp_path):
    truth = cohort / "labelsTr"
    shutil.copytree(truth, tmp_path / "some")
    next((tmp_path / "some").iterdir()).unlink()
    assert homolog("evaluate", tmp_path / "some", "--labels", truth) == 2


def test_labels_on_another_grid_are_refused(cohort, tmp_path, capsys):
    truth = sorted((cohort / "labelsTr").iterdir())[0]
    labels = read_labels(truth)
    for folder in ("truth", "moved"):
        (tmp_path / folder).mkdir()
    shutil.copy(truth, tmp_path / "truth" / truth.name)
    moved = LabelMap(labels.data, labels.affine.crop((1, 0, 0)))
    write_labels(moved, tmp_path / "moved" / truth.name)
    status = homolog("evaluate", tmp_path / "moved", "--labels", tmp_path / "truth")
    assert status == 2
    assert "must lie on one grid" in capsys.readouterr().err


def test_encoder_alone_cannot_predict(run, cohort, tmp_path, capsys):
    from homolog.backbones import build
    from homolog.config import to_dict
    from homolog.model_files.folder import save_model

    encoder = build("resunet", {"channels": (8, 16)})
    told = {"name": "resunet", "config": to_dict(encoder.config)}
    card = {"kind": "encoder", "backbone": told}
    save_model(tmp_path / "pre" / "model", encoder.state_dict(), card)
    scan = sorted((cohort / "imagesTr").iterdir())[0]
    status = homolog("predict", scan, "--model", tmp_path / "pre", "--out", tmp_path)
    assert status == 2
    assert "homolog finetune segment" in capsys.readouterr().err


def test_store_prepared_otherwise_is_refused(run, cohort, tmp_path, capsys):
    from homolog.store.build import prepare_store

    drain(prepare_store([cohort], tmp_path / "coarse", spacing=(3.0, 3.0, 3.0)))
    status = homolog("evaluate", "--model", run / "run", tmp_path / "coarse")
    assert status == 2
    assert "spacing_mm" in capsys.readouterr().err


def _of_other_sizes(run, cohort, folder):
    """One ball as it is, in voxels of half the size, and in thick slices."""
    scan = read_scan(cohort / "imagesTr" / "ball_2_0000.nii.gz")
    fine = scan.data
    for axis in (1, 2, 3):
        fine = np.repeat(fine, 2, axis)
    thick = scan.data[:, :27].reshape(1, 9, 3, 28, 28).mean(2).astype(np.int16)
    own = scan.affine
    write_volume(scan, folder / "same.nii.gz")
    half = own @ Affine.shift((-0.25,) * 3) @ Affine.scale((0.5, 0.5, 0.5))
    write_volume(Volume(fine, half), folder / "fine.nii.gz")
    stack = own @ Affine.shift((1.0, 0.0, 0.0)) @ Affine.scale((3.0, 1.0, 1.0))
    # another order of axes too: sizes are those along the body's axes
    turned = reorder_axes(thick, (2, 0, 1), (True, False, False))
    grid = stack.reorient((2, 0, 1), (True, False, False), (9, 28, 28))
    write_volume(Volume(turned, grid), folder / "thick.nii.gz")


def test_scans_of_other_voxel_sizes_are_brought_to_the_models(
    run, cohort, tmp_path, capsys
):
    (tmp_path / "in").mkdir()
    _of_other_sizes(run, cohort, tmp_path / "in")
    card = json.loads((run / "run" / "model" / "model.json").read_text())
    assert card["preprocessing"]["spacing_mm"] is None
    assert card["learnt_spacing_mm"]["smallest"] == pytest.approx([1.5] * 3)
    status = homolog(
        "predict", tmp_path / "in", "--model", run / "run", "--out", tmp_path / "out",
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert status == 0
    found = {p["scan"].split("/")[-1]: p for p in last_line(capsys)["predicted"]}
    same = found["same.nii.gz"]["volumes_ml"]["ball"]
    truth = read_labels(cohort / "labelsTr" / "ball_2.nii.gz").data.sum() * 1.5**3
    assert same == pytest.approx(truth / 1000, rel=0.5)
    assert found["same.nii.gz"]["notes"] == []
    for name, size in (("fine", "0.75 mm"), ("thick", "1.5 x 1.5 x 4.5 mm (x, y, z)")):
        told = found[f"{name}.nii.gz"]
        assert told["volumes_ml"]["ball"] == pytest.approx(same, rel=0.2)
        assert any(f"its voxels of {size} were brought" in n for n in told["notes"])
        scan = read_scan(tmp_path / "in" / f"{name}.nii.gz")
        labels = read_labels(tmp_path / "out" / f"{name}.nii.gz")
        assert labels.shape == scan.shape
        assert labels.affine == scan.affine


def test_models_from_before_take_their_stores_size_or_warn(
    run, cohort, tmp_path, capsys
):
    old = tmp_path / "old"
    shutil.copytree(run / "run" / "model", old / "model")
    place = old / "model" / "model.json"
    card = json.loads(place.read_text())
    del card["learnt_spacing_mm"]
    place.write_text(json.dumps(card))
    (tmp_path / "in").mkdir()
    _of_other_sizes(run, cohort, tmp_path / "in")

    def predicted(out):
        status = homolog(
            "predict", tmp_path / "in" / "fine.nii.gz", "--model", old, "--out", out,
            "--device", "cpu", "--json",
        )  # fmt: skip
        assert status == 0
        captured = capsys.readouterr()
        result = json.loads(captured.out.strip().splitlines()[-1])
        (warning,) = result["warnings"]
        assert f"warning: {warning}" in captured.err
        return warning, result["predicted"][0]

    warning, alone = predicted(tmp_path / "alone")
    assert "does not say at which voxel size it learnt" in warning
    assert alone["notes"] == []
    # in a run whose store is still there unchanged
    store, config = run / "store", {"store": str(run / "store"), "more_stores": []}
    (old / "run.json").write_text(json.dumps({"config": config}))
    warning, told = predicted(tmp_path / "of_run")
    assert f"training data in {store}, 1.5 mm" in warning
    assert "were brought to 1.5 mm" in told["notes"][0]
