"""Mutated files of every kind beside scans: no reader may let a stray error out.

Label maps that name their classes (``.seg.nrrd``, DICOM segmentations and contours),
tables of labels, boxes, points and landmarks, manifests and data sets, weights
(safetensors, torch), model folders, stores, runs, plans and recipes. A sound one of
each is written, then damaged: bytes as in ``fuzz_readers.py``; and, so that damage
goes deeper than the first check, values of JSON, TOML and tables replaced by hostile
ones, headers of safetensors and pickles in archives changed and put together again.
Each is read in a process of limited memory, with a time limit and warnings as errors.

    python benchmarks/fuzz_files.py --count 20000 --seed 0

Counted as in ``fuzz_readers.py``: ``refused`` with a sentence, ``same``, ``other``, and
what must not be: ``error, crash, hang, swollen, noisy``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import io
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_readers as of_scans
from fuzz_readers import BAD, DAMAGE, Readers, Seed

RESULT = Path(__file__).parent / "results" / "fuzz_files.json"
DEEP = 3000
# Loaded before the clock runs.
SLOW = (
    "torch", "highdicom", "homolog.methods.mae", "homolog.comparing.plan",
    "homolog.model_files.encoder", "homolog.store.store",
)  # fmt: skip


# ---- how each is read ----------------------------------------------------------------


def _labels(path: Path) -> Any:
    from homolog.scans.files import read_labels
    from homolog.scans.inspect import inspect_scan
    from homolog.scans.names import names_told

    inspect_scan(path)
    read = read_labels(path, names_told(path))
    return [sorted(read.names.items()), hashlib.sha256(read.data.tobytes()).hexdigest()]


def _folder_of_labels(path: Path) -> Any:
    return _labels(path / "labels.dcm")


def _label_table(path: Path) -> Any:
    from homolog.scans.formats.label_tables import read_label_table

    return read_label_table(path)


def _label_names(path: Path) -> Any:
    from homolog.scans.names import names_beside

    return names_beside(path)


def _box_json(path: Path) -> Any:
    from homolog.scans.boxes import read_box_json

    return read_box_json(path).to_dict()


def _regions(path: Path) -> Any:
    from homolog.geometry.affine import Affine
    from homolog.scans.boxes import read_regions

    return [one.on_grid(Affine.shift((0.0, 0.0, 0.0))) for one in read_regions(path)]


def _points(path: Path) -> Any:
    from homolog.scans.points import read_landmark_points

    return read_landmark_points(path).mm.tolist()


def _landmarks(path: Path) -> Any:
    from homolog.scans.points import read_landmarks

    return read_landmarks(path)


def _matches(path: Path) -> Any:
    from homolog.scans.points import read_landmark_markups, read_markups

    read_markups(path)
    return read_landmark_markups(path)


def _manifest(path: Path) -> Any:
    from homolog.index.manifests import read_manifest

    found = read_manifest(path)
    return [found.candidates, found.rejected]


def _dataset(path: Path) -> Any:
    from homolog.index.datasets import is_dataset, read_dataset

    is_dataset(path)
    found = read_dataset(path)
    return [found.candidates, found.rejected]


def _weights(path: Path) -> Any:
    from homolog.errors import UnusableInput
    from homolog.model_files.foreign import read_foreign
    from homolog.model_files.layouts import recognise

    found = read_foreign(path)
    with contextlib.suppress(UnusableInput):  # two tensors are no network
        recognise(found.shapes, found.told)
    return [found.shapes, found.told]


def _model(path: Path) -> Any:
    from homolog.model_files.encoder import load_encoder

    loaded = load_encoder(path)
    return sorted(loaded.card)


def _store(path: Path) -> Any:
    from homolog.store.store import Store

    opened = Store.open(path)
    return [card.to_dict() for card in opened.cards]


def _run(path: Path) -> Any:
    from homolog.runs.run import Run

    run = Run.open(path)
    events = [event for _, event in run.journal.read()]
    run.check_checkpoints()
    return [run.state(), run.last_step(), run.processes(), run.pid(), len(events)]


def _plan(path: Path) -> Any:
    from homolog.comparing.plan import make_plan, read_plan

    return make_plan(read_plan(path), methods="", patients="")


def _recipe(path: Path) -> Any:
    from homolog.methods import METHODS
    from homolog.training.run_settings import read_recipe, run_settings

    tables = read_recipe(path, ("method", "backbone", "training"))
    return run_settings(
        METHODS.get("mae").RECIPES["cpu"], tables, table="method", recipe_name="cpu",
        config=METHODS.get("mae").Config, where="mae", backbone=None, small=True,
    )  # fmt: skip


# Beginning of a format's name -> its reader.
READERS: dict[str, Callable[[Path], Any]] = {
    "seg-nrrd": _labels, "dicom-seg": _folder_of_labels,
    "dicom-contours": _folder_of_labels, "label-table": _label_table,
    "label-names": _label_names, "boxes": _box_json, "regions": _regions,
    "points": _points, "landmarks": _landmarks, "matches": _matches,
    "manifest": _manifest, "dataset": _dataset, "weights": _weights, "model": _model,
    "store": _store, "run": _run, "plan": _plan, "recipe": _recipe,
}  # fmt: skip


def read_one(path: Path) -> dict[str, Any]:
    """What becomes of one file; the folder's name begins with its format."""
    from homolog.config import ConfigError
    from homolog.errors import JobError, UnusableInput

    name = next(part for part in path.parts if part.startswith("fuzz~")).split("~")[1]
    try:
        read = READERS[name](path)
    except (UnusableInput, ConfigError, JobError, FileNotFoundError) as error:
        what = "refused" if str(error) else "error"
        return {"what": what, "code": name, "text": str(error)[:300]}
    digest = hashlib.sha256(repr(read).encode("utf-8", "replace")).hexdigest()
    return {"what": "sound", "content": digest}


# ---- sound files ---------------------------------------------------------------------


@functools.cache
def seeds(*, heavy: bool = True) -> list[Seed]:
    """A sound file of each kind, whole folders as their files.

    Args:
        heavy: Those too that need torch, highdicom or a store to be made.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        found = [*_label_seeds(root), *_list_seeds(root), *_case_seeds(root)]
        found += [*_run_seeds(root), *_plan_seeds()]
        if not heavy:  # recipes are read with the methods they are for
            found = [one for one in found if one.format != "recipe"]
        else:
            found += [*_dicom_label_seeds(root / "dicom"), *_store_seeds(root)]
            found += _weight_seeds(root)
        return found


def _of(kind: str, path: Path, target: str | None = None) -> Seed:
    """A file, or a folder with all its files."""
    if path.is_file():
        content = path.read_bytes()
        return Seed(kind, {path.name: content}, path.name, len(content))
    files = {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*")) if p.is_file()
    }  # fmt: skip
    return Seed(kind, files, target or "", len(next(iter(files.values()))))


def _label_seeds(root: Path) -> Iterator[Seed]:
    import numpy as np
    import SimpleITK as sitk

    mask = np.zeros((5, 8, 9), np.uint8)
    mask[1:3, 2:5, 2:5], mask[3, 4:7, 5:8] = 1, 2
    image = sitk.GetImageFromArray(mask)
    for number, what in enumerate(("liver", "left kidney")):
        image.SetMetaData(f"Segment{number}_Name", what)
        image.SetMetaData(f"Segment{number}_LabelValue", str(number + 1))
        image.SetMetaData(f"Segment{number}_Layer", "0")
    sitk.WriteImage(image, str(root / "a.seg.nrrd"))
    yield replace(_of("seg-nrrd", root / "a.seg.nrrd"), voxels=900)
    tables = {
        "a.ctbl": "# Color table file\n1 left_kidney 10 20 30 255\n2 liver 1 2 3 255\n",
        "a.txt": '# ITK-SnAP\n 0 0 0 0 0 0 0 "Clear"\n 1 9 9 9 1 1 1 "liver"\n',
        "a.tsv": "index\tname\n1\tliver\n2\tkidney\n",
        "a.csv": "value,label\n1,liver\n2,kidney\n",
    }
    for name, text in tables.items():
        yield Seed("label-table", {name: text.encode()}, name, len(text))
    told = json.dumps({"1": "liver", "2": {"name": "kidney"}}).encode()
    yield Seed(
        "label-names", {"a.labels.json": told, "a.nii.gz": b""}, "a.nii.gz", len(told)
    )


def _dicom_label_seeds(folder: Path) -> Iterator[Seed]:
    """A segmentation and contours beside their CT, as highdicom and pydicom write."""
    import numpy as np
    import pydicom

    from homolog.scans.dicom.export import write_segmentation
    from homolog.scans.files import read_scan
    from homolog.scans.volume import LabelMap

    mask = np.zeros((5, 8, 9), np.int16)
    mask[1:3, 2:5, 2:5], mask[3, 4:7, 5:8] = 1, 2
    folder.mkdir()
    for i in range(5):
        made = pydicom.dcmread(io.BytesIO(of_scans.dicom_slice(i)))
        for name, value in {
            "PatientName": "A^B", "PatientBirthDate": "", "PatientSex": "",
            "StudyDate": "20200101", "StudyTime": "101010", "AccessionNumber": "",
            "ReferringPhysicianName": "", "StudyID": "1", "SeriesNumber": "1",
            "FrameOfReferenceUID": "1.2.3.9",
        }.items():  # fmt: skip
            setattr(made, name, value)
        made.save_as(folder / f"ct{i}.dcm")
    scan = read_scan(folder)
    labels = LabelMap(mask, scan.affine, {1: "liver", 2: "kidney"})
    seg, rt = folder.parent / "seg", folder.parent / "contours"
    for copy in (seg, rt):
        shutil.copytree(folder, copy)
    write_segmentation(labels, seg / "labels.dcm", scan.meta["slices"])
    _write_contours(rt / "labels.dcm")
    for kind, place in (("dicom-seg", seg), ("dicom-contours", rt)):
        whole = _of(kind, place)
        files = {"labels.dcm": whole.files["labels.dcm"], **whole.files}
        yield Seed(kind, files, "", len(files["labels.dcm"]))


def _write_contours(path: Path) -> None:
    import numpy as np
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    rings = [
        np.column_stack([6 + 3 * np.cos(angle), 6 + 3 * np.sin(angle), np.full(20, z)])
        for z in (2.0, 4.0, 6.0)
    ]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = "1.2.8"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    series = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID="1.2.3.4")])
    whole.update(
        item(
            SOPClassUID=RTStructureSetStorage, SOPInstanceUID="1.2.8",
            Modality="RTSTRUCT", PatientID="P7", SeriesInstanceUID="1.2.8.1",
            ReferencedFrameOfReferenceSequence=[
                item(RTReferencedStudySequence=[series])
            ],
            StructureSetROISequence=[item(ROINumber=10, ROIName="ring")],
            ROIContourSequence=[
                item(
                    ReferencedROINumber=10, ROIDisplayColor=[255, 10, 0],
                    ContourSequence=[
                        item(
                            ContourGeometricType="CLOSED_PLANAR",
                            NumberOfContourPoints=len(ring),
                            ContourData=[f"{v:.3f}" for v in ring.ravel()],
                        )
                        for ring in rings
                    ],
                )
            ],
        )
    )  # fmt: skip
    whole.save_as(path)


def _list_seeds(root: Path) -> Iterator[Seed]:
    """Boxes, points and landmarks."""
    import numpy as np

    from homolog.geometry.affine import Affine
    from homolog.scans import boxes, points

    two = [
        boxes.ScanBox("nodule", 0.5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        boxes.ScanBox("lesion", None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ]
    affine = Affine(np.diag([2.0, 1.0, 1.0, 1.0]))
    found = boxes.BoxList("a", (9, 9, 9), tuple(two), affine)
    boxes.write_box_json(found, root / "a.boxes.json")
    boxes.write_regions(found, root / "regions.mrk.json")
    marks = [
        points.Landmark(1, "carina", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0.9, 0.1, 2.0,
                        True),
        points.Landmark(2, "apex", (1.0, 2.0, 3.0), None, 0.9, 0.1, 2.0, False, "far"),
    ]  # fmt: skip
    for ending in ("json", "csv"):
        points.write_landmarks(marks, root / f"landmarks.{ending}")
        yield _of("landmarks", root / f"landmarks.{ending}")
        yield _of("points", root / f"landmarks.{ending}")
    points.write_landmark_markups(marks, root / "matches.mrk.json")
    fiducials = (
        "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        "1,10,20,30,0,0,0,1,1,1,0,carina,,\n2,1,2,3,0,0,0,1,1,1,0,apex,,\n"
    )
    yield Seed("points", {"a.fcsv": fiducials.encode()}, "a.fcsv", len(fiducials))
    yield _of("points", root / "matches.mrk.json")
    yield _of("matches", root / "matches.mrk.json")
    yield _of("boxes", root / "a.boxes.json")
    yield _of("regions", root / "regions.mrk.json")


def _case_seeds(root: Path) -> Iterator[Seed]:
    """Manifests and data sets, beside one scan they name."""
    scan = of_scans.nifti() + of_scans.scan_values().tobytes()
    both = {"a.nii": scan, "b.nii": scan}
    rows = (
        "image,label,modality,class,types,subject,split,boxes,id,channels,status\n"
        'a.nii,b.nii,CT,effusion|nodule,,p1,train,"[{""label"": ""x"", ""min"": '
        '[0,0,0], ""max"": [1,1,1]}]",one,,\nb.nii,,MR,no finding,,p2,test,,two,,ok\n'
    )
    named = json.dumps(
        {
            "cases": [
                {"image": "a.nii", "label": "b.nii", "modality": "CT", "subject": "p1",
                 "class": ["effusion"], "boxes": [
                     {"label": "x", "voxel_xyz": [0, 0, 0, 1, 1, 1]}]},
                {"image": ["a.nii", "b.nii"], "channels": ["T1", "T2"], "id": "two"},
            ],
            "label_names": {"1": "liver"},
        }
    )  # fmt: skip
    monai = json.dumps(
        {"training": [{"image": "a.nii", "label": "b.nii"}], "test": ["b.nii"]}
    )
    pictures = "image,x,y,w,h,class\na.nii,1,1,2,2,nodule\na.nii,2,2,3,3,nodule\n"
    for name, text in {
        "m.csv": rows, "n.json": named, "o.json": monai, "p.csv": pictures,
    }.items():  # fmt: skip
        yield Seed("manifest", {name: text.encode(), **both}, name, len(text))
    decathlon = json.dumps(
        {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"},
         "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}],
         "test": ["./imagesTs/b.nii"], "numTraining": 1}
    )  # fmt: skip
    nnunet = json.dumps(
        {"channel_names": {"0": "T1"}, "file_ending": ".nii", "numTraining": 1,
         "labels": {"background": 0, "whole": [1, 2], "core": 2},
         "regions_class_order": [1, 2]}
    )  # fmt: skip
    places = {
        "imagesTr/a.nii": scan, "imagesTr/c_0000.nii": scan, "labelsTr/a.nii": scan,
        "labelsTr/c.nii": scan, "imagesTs/b.nii": scan,
    }  # fmt: skip
    for text in (decathlon, nnunet):
        yield Seed("dataset", {"dataset.json": text.encode(), **places}, "", len(text))


def _weight_seeds(root: Path) -> Iterator[Seed]:
    """Weights as safetensors and in both formats of torch; a model folder."""
    import argparse as settings

    import torch
    from safetensors.torch import save_file

    from homolog.backbones import build
    from homolog.config import to_dict
    from homolog.model_files.folder import save_model

    state = {
        "module.conv.weight": torch.ones(2, 1, 3),
        "module.conv.bias": torch.ones(2),
    }
    save_file(state, root / "w.safetensors", {"said": "by somebody"})
    told = {"state_dict": state, "epoch": 3, "args": settings.Namespace(lr=0.1)}
    torch.save(told, root / "zip.pt")
    torch.save(told, root / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "zip.pt", "old.pt"):
        yield _of("weights", root / name)
    torch.manual_seed(0)
    network = build("resunet", {"channels": [4, 8, 8]})
    card = {
        "kind": "encoder", "backbone": {
            "name": "resunet", "config": to_dict(network.config)},
        "preprocessing": {}, "trained_on": [],
    }  # fmt: skip
    save_model(root / "model", network.state_dict(), card)
    whole = _of("model", root / "model")
    files = {"model.json": whole.files["model.json"], **whole.files}
    yield Seed("model", files, "", len(files["model.json"]))


def _store_seeds(root: Path) -> Iterator[Seed]:
    """A store of two phantoms."""
    from homolog.events import drain
    from homolog.phantom.phantom import write_cohort
    from homolog.store.build import prepare_store

    write_cohort(root / "cohort", 2, test=0, shape=(16, 16, 16), spacing_mm=(16.0,) * 3)
    drain(prepare_store([root / "cohort"], root / "store"))
    whole = _of("store", root / "store")
    cards = [n for n in whole.files if n.endswith("card.json")]
    for first in ("store.json", cards[0]):
        files = {first: whole.files[first], **whole.files}
        yield Seed("store", files, "", len(files[first]))


def _run_seeds(root: Path) -> Iterator[Seed]:
    """A run that said a few things."""
    from homolog.events import Note, Saved, Started, Step, Stopped
    from homolog.runs.run import Run

    run = Run.create(root / "run", "pretrain", {"store": "store", "seed": 3})
    run.begin_session()
    for event in (
        Started("train", 9, {"processes": 1}), Note("hello"),
        Step(3, 9, {"loss": 1.0}, seconds_per_step=0.1), Saved("model", "model"),
        Stopped(3),
    ):  # fmt: skip
        run.journal.append(event)
    run.end_session({"state": "stopped"})
    for first in ("run.json", "events.jsonl"):
        files = {first: (root / "run" / first).read_bytes()}
        files |= _of("run", root / "run").files
        yield Seed("run", files, "", len(files[first]))


def _plan_seeds() -> Iterator[Seed]:
    """Plans of comparisons and recipes, as TOML and JSON."""
    plan = {
        "task": "segment", "patients": [1, 2, "all"], "seeds": 2, "folds": 0,
        "marks": 5, "recipe": "cpu",
        "finetune": {"training": {"steps": 100, "learning_rate": 1e-3}},
        "arms": {"scratch": {}, "ours": {"method": "s2dc", "against": "scratch"}},
    }  # fmt: skip
    recipe = {
        "method": {"mask_ratio": 0.75}, "backbone": {"name": "vit"},
        "training": {"steps": 9, "batch_size": 2, "learning_rate": 1e-3,
                     "precision": "fp32"},
    }  # fmt: skip
    for kind, told in (("plan", plan), ("recipe", recipe)):
        for name, text in (("a.json", json.dumps(told)), ("a.toml", as_toml(told))):
            yield Seed(kind, {name: text.encode()}, name, len(text))


def as_toml(told: dict[str, Any], table: str = "") -> str:
    """The tables of a dictionary; enough for plans and recipes."""
    plain = {k: v for k, v in told.items() if not isinstance(v, dict)}
    lines = [f"[{table}]"] if table else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    inner = [(k, v) for k, v in told.items() if isinstance(v, dict)]
    tables = (as_toml(v, f"{table}.{k}" if table else k) for k, v in inner)
    return "\n".join([*lines, *tables]) + "\n"


# ---- damage --------------------------------------------------------------------------

_HUGE = "9" * 400
# JSON texts that stand for a value.
HOSTILE = (
    "null", "true", "-1", "0", "3.5", "1e308", "1e999", "-1e999", "NaN", "Infinity",
    _HUGE, "9" * 5000, '""', '"x"', '"\\u0000"', '"\\ud800"', '"../../x"',
    '"/etc/passwd"', json.dumps("a" * 20_000), '"=cmd|x"', '"<script>"', '"con"',
    "[]", "{}", "[1, 2]",
    "[[]]", '{"a": 1}', '[{"a": []}]', "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP, '"nan"', '"1"', '"-7"', '"\\n"', "[null]",
    '["x", "x"]', "9223372036854775808", "-9223372036854775809", "2147483648",
)  # fmt: skip
MARK = "\x02\x03mark"


def json_value(rng: random.Random, data: bytes, _: int) -> bytes:
    """One value somewhere replaced, left out, doubled or put into a list."""
    try:
        told = json.loads(data)
    except ValueError:
        return of_scans.random_run(rng, data, len(data))
    places = list(_places(told, ()))
    where = rng.choice(places)
    how = rng.choice(
        ("replace", "replace", "replace", "drop", "wrap", "rename", "twice")
    )
    holder: Any = told
    for key in where[:-1]:
        holder = holder[key]
    value = HOSTILE[rng.randrange(len(HOSTILE))]
    if not where:
        return value.encode()
    key = where[-1]
    if how == "drop":
        del holder[key]
    elif how == "wrap":
        holder[key] = [holder[key]]
    elif how == "rename" and isinstance(holder, dict):
        holder[rng.choice(("", "x", "1", "-1", "\0", "__class__"))] = holder.pop(key)
    elif how == "twice" and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice((1, 50)))
    else:
        holder[key] = MARK
    return json.dumps(told).replace(json.dumps(MARK), value).encode()


def _places(value: Any, so_far: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield so_far
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for key, inner in inside:
        yield from _places(inner, (*so_far, key))


CELLS = (
    "", "nan", "inf", "-1", "1e400", _HUGE, "9" * 5000, "=1+1", "'", '"', '""', "\0",
    "a" * 200_000, "../../x", "/etc/passwd", "/dev/zero", "|", "a|b", "[", "{}", "[{}]",
    '"[{""label"": 1}]"', "²", "٣", "\u202e", "\ud800", "con", "true", "1;2", "1\t2",
    '"a\nb"', "<b>", "x" * 300, "0x10", "1_0", " 1 ",
)  # fmt: skip


def table_cell(rng: random.Random, data: bytes, _: int) -> bytes:
    """A cell replaced, or a line left out, doubled or without its end."""
    text = data.decode("utf-8", "replace")
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    sign = "\t" if "\t" in lines[0] else ","
    how = rng.choice(("cell", "cell", "cell", "drop", "twice", "join", "head"))
    if how == "drop":
        del lines[at]
    elif how == "twice":
        lines[at:at] = [lines[at]] * rng.choice((1, 100))
    elif how == "join":
        lines[at] = lines[at].replace(sign, rng.choice((";", "", sign * 2)), 1)
    else:
        row = lines[0 if how == "head" else at].split(sign)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
        lines[0 if how == "head" else at] = sign.join(row)
    return "\n".join(lines).encode("utf-8", rng.choice(("surrogatepass", "replace")))


TOML = (
    "inf", "-inf", "nan", _HUGE, "9" * 5000, "''", "[]", "{}", "true", "1979-05-27",
    "[[1]]", "-1", "0", "1e400", "[" * DEEP + "]" * DEEP, '"\\u0000"', "'''x'''",
    "{a = {b = {c = 1}}}", '"../x"', "07:32:00", "0x10", "1e-400",
)  # fmt: skip


def toml_value(rng: random.Random, data: bytes, _: int) -> bytes:
    """A value replaced, a line left out or doubled, a table nested."""
    lines = data.decode("utf-8", "replace").split("\n")
    at = rng.randrange(len(lines))
    how = rng.choice(("value", "value", "value", "drop", "twice", "name"))
    key, sign, _rest = lines[at].partition(" = ")
    if how == "drop":
        del lines[at]
    elif how == "twice":
        lines.insert(at, lines[at])
    elif how == "name" and not sign:
        lines[at] = rng.choice(("[a.b.c]", "[[arms]]", "[" + "a." * DEEP + "a]", "[]"))
    else:
        lines[at] = f"{key or 'x'} = {rng.choice(TOML)}"
    return "\n".join(lines).encode()


def header_of_tensors(rng: random.Random, data: bytes, size: int) -> bytes:
    """The JSON of a safetensors file changed, its length put right or not."""
    length = struct.unpack("<Q", data[:8])[0]
    head, rest = data[8 : 8 + length], data[8 + length :]
    new = json_value(rng, head, size)
    said = rng.choice((len(new),) * 6 + (0, 1, len(new) + 9, 1 << 40, (1 << 64) - 1))
    return struct.pack("<Q", said) + new + rest


def pickle_in_archive(rng: random.Random, data: bytes, size: int) -> bytes:
    """The pickle of a torch archive changed, its checksum right; or an entry odd."""
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        entries = {info.filename: packed.read(info) for info in packed.infolist()}
    name = next(n for n in entries if n.endswith("data.pkl"))
    if rng.random() < 0.7:
        damage = rng.choice(BYTES)
        entries[name] = damage(rng, entries[name], len(entries[name]))
    else:
        one = rng.choice(list(entries))
        entries[rng.choice(("../x", "w/data/9", "x\\y", "zip/.data/x", ""))] = entries[
            one
        ]
        if rng.random() < 0.5:
            del entries[one]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as packed:
        for entry, content in entries.items():
            packed.writestr(entry or "x", content)
    return made.getvalue()


BYTES = tuple(d for d in DAMAGE if d not in of_scans.TEXT_ONLY)


def damages_of(name: str) -> tuple[of_scans.Damage, ...]:
    """What is done to a file of a name; its own kind of damage more often."""
    own: dict[str, of_scans.Damage] = {
        r"\.json$": json_value, r"\.jsonl$": json_line,
        r"\.(csv|tsv|fcsv)$": table_cell,
        r"\.toml$": toml_value, r"^w\.safetensors$": header_of_tensors,
        r"^zip\.pt$": pickle_in_archive, r"\.(ctbl|txt)$": table_cell,
    }  # fmt: skip
    found = next((d for pattern, d in own.items() if re.search(pattern, name)), None)
    if name.endswith(".seg.nrrd"):
        found = of_scans.hostile_value
    return BYTES if found is None else (*(found,) * 2 * len(BYTES), *BYTES)


def json_line(rng: random.Random, data: bytes, size: int) -> bytes:
    """One line of many changed."""
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_value(rng, lines[at], size)
    return b"\n".join(lines) + b"\n"


@dataclass(frozen=True)
class Mutant:
    """A damaged file on disk: what it was, how it was damaged, what is read."""

    seed: Seed
    kind: str
    folder: Path
    target: Path


def mutants(corpus: list[Seed], count: int, seed: int, root: Path) -> Iterator[Mutant]:
    """Damaged files, every format in turn; each in a folder of its own."""
    rng = random.Random(seed)
    by_format: dict[str, list[Seed]] = defaultdict(list)
    for one in corpus:
        by_format[one.format].append(one)
    names = list(by_format)
    for number in range(count):
        chosen = rng.choice(by_format[names[number % len(names)]])
        folder = placed(chosen, root, number)
        name = next(iter(chosen.files))
        if len(chosen.files) > 1 and rng.random() < 0.15:
            name = rng.choice(list(chosen.files))
        data = chosen.files[name]
        damage = rng.choice(damages_of(Path(name).name))
        room = min(chosen.voxels, len(data)) or len(data)
        if data:
            (folder / name).write_bytes(damage(rng, data, room))
        yield Mutant(chosen, damage.__name__, folder, folder / chosen.target)


def placed(seed: Seed, root: Path, number: int) -> Path:
    """A seed's files in a folder that tells its format."""
    folder = root / f"fuzz~{seed.format}~{number}"
    for name, content in seed.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# ---- the table -----------------------------------------------------------------------


def fuzz(
    count: int, seed: int, only: str = "", *, heavy: bool = True
) -> dict[str, Any]:
    """Counts for each format and kind of damage, and every mutant that was bad."""
    formats: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    bad: list[dict[str, Any]] = []
    corpus = [one for one in seeds(heavy=heavy) if only in one.format]
    readers = Readers(__file__)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        try:
            truth = [_truth(one, root, readers) for one in corpus]
            known = dict(zip(map(id, corpus), truth, strict=True))
            for number, one in enumerate(mutants(corpus, count, seed, root)):
                told = readers.read(one.target)
                what = told["what"]
                if what == "sound":
                    same = told["content"] == known[id(one.seed)]
                    what = "same" if same else "other"
                formats[one.seed.format][what] += 1
                kinds[one.kind][what] += 1
                if what in BAD:
                    about = {"format": one.seed.format, "kind": one.kind}
                    bad.append({"number": number, **about, **told})
                shutil.rmtree(one.folder)
        finally:
            readers.end()
    return {
        "count": count,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "limits": of_scans.LIMITS,
        "total": dict(sum(kinds.values(), Counter())),
        "bad": bad,
        "formats": {k: dict(v) for k, v in sorted(formats.items())},
        "kinds": {k: dict(v) for k, v in sorted(kinds.items())},
    }


def _truth(seed: Seed, root: Path, readers: Readers) -> str:
    """What the sound one holds; it must be sound."""
    folder = placed(seed, root, 0)
    told = readers.read(folder / seed.target)
    shutil.rmtree(folder)
    if told["what"] != "sound":
        raise AssertionError(f"{seed.format} {seed.target}: {told}")
    return str(told["content"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="formats with this in their name")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        for name in SLOW:
            importlib.import_module(name)
        of_scans.serve(read_one)
        return
    of_scans.in_batches(
        lambda count, seed: fuzz(count, seed, given.only),
        given.count, given.seed, given.out, anew=given.anew,
    )  # fmt: skip


if __name__ == "__main__":
    main()
