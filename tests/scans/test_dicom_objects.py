"""What is no scan is refused with its true reason; pictures that need no place pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dicom_writer import Tags, element, file_of, picture, series, tags_of, write
from each import each
from homolog.events import drain
from homolog.index.index import index_sources
from homolog.index.tree import list_series
from homolog.scans.files import read_header, read_scan
from homolog.scans.inspect import inspect_scan
from scan_faults import dicom_series, image, mask, nifti, put, values

COLOUR = {0x00280002: ("US", 3), 0x00280004: ("CS", "RGB"), 0x00280006: ("US", 0)}
EIGHT = picture(3).astype(np.uint8)
FRAMES = picture(5, (6, 12, 14))
POSITION, ORIENTATION, SPACING = 0x00200032, 0x00200037, 0x00280030

REFUSED: dict[str, tuple[Callable[[], Tags], str, str]] = {
    "capture of a screen": (
        lambda: tags_of("capture", "OT", placed=False, pixels=EIGHT),
        "capture", "secondary capture",
    ),
    "capture that says CT": (
        lambda: tags_of("capture", "CT", placed=False),
        "capture", "secondary capture",
    ),
    "capture with a size but no place": (
        lambda: tags_of("capture", "CT", more={POSITION: None}),
        "capture", "secondary capture",
    ),
    "capture of one placed slice": (
        lambda: tags_of("capture", "MR"), "capture", "secondary capture of 1 image",
    ),
    "capture without its class": (
        lambda: tags_of("", "OT", placed=False, more={0x00080064: ("CS", "WSD")}),
        "capture", "secondary capture",
    ),
    "captures in one file": (
        lambda: tags_of("capture film", "OT", pixels=FRAMES.astype(np.uint8)),
        "capture", "6 frames",
    ),
    "screen save of a CT class": (
        lambda: tags_of(
            "CT", more={0x00080008: ("CS", "DERIVED\\SECONDARY\\SCREEN SAVE")}
        ),
        "capture", "picture of a screen",
    ),
    "CT without a position": (
        lambda: tags_of("CT", more={POSITION: None}),
        "no_place", "no image position in the header",
    ),
    "MR without an orientation": (
        lambda: tags_of("MR", more={ORIENTATION: None}),
        "no_place", "no image orientation in the header",
    ),
    "CT without either": (
        lambda: tags_of("CT", placed=False),
        "no_place", "no image position and orientation",
    ),
    "position that is no number": (
        lambda: tags_of("CT", more={POSITION: ("DS", "0\\nan\\0")}),
        "no_place", "no image position",
    ),
    "CT without a pixel spacing": (
        lambda: tags_of("CT", more={SPACING: None}),
        "spacing", "pixel spacing must be positive, the header says nothing",
    ),
    "nothing but pixels": (
        lambda: tags_of("", "", placed=False), "no_place", "no image position",
    ),
    "scout": (
        lambda: tags_of(
            "CT", more={0x00080008: ("CS", "ORIGINAL\\PRIMARY\\LOCALIZER")}
        ),
        "localiser", "a localiser",
    ),
    "scout by its scan options": (
        lambda: tags_of("CT", more={0x00180022: ("CS", "SCOUT MODE")}),
        "localiser", "a localiser",
    ),
    "scout by its description": (
        lambda: tags_of("MR", more={0x0008103E: ("LO", "AAHScout_32ch")}),
        "localiser", "a localiser",
    ),
    "mosaic": (
        lambda: tags_of(
            "MR", more={0x00080008: ("CS", "ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC")}
        ),
        "mosaic", "a Siemens mosaic: slices tiled into one 12 x 14",
    ),
    "mosaic without its image type": (
        lambda: tags_of(
            "MR",
            more={
                0x00190010: ("LO", "SIEMENS MR HEADER"), 0x0019100A: ("US", 16),
            },
        ),
        "mosaic", "16 slices tiled",
    ),
    "enhanced MR": (
        lambda: tags_of("enhanced MR", "MR", placed=False, pixels=FRAMES),
        "multi_frame", "an enhanced file of 6 frames",
    ),
    "enhanced MR that is placed": (
        lambda: tags_of("enhanced MR", "MR", pixels=FRAMES),
        "multi_frame", "an enhanced file of 6 frames",
    ),
    "enhanced CT without its class": (
        lambda: tags_of(
            "", "CT", placed=False, pixels=FRAMES, more={0x52009229: ("SQ", [{}])}
        ),
        "multi_frame", "an enhanced file of 6 frames",
    ),
    "nuclear medicine in frames": (
        lambda: tags_of("NM", pixels=FRAMES), "multi_frame", "a file of 6 frames",
    ),
    "ultrasound film": (
        lambda: tags_of("US film", "US", placed=False, pixels=FRAMES.astype(np.uint8)),
        "4d", "a film of 6 frames",
    ),
    "angiographic film": (
        lambda: tags_of("XA", placed=False, pixels=FRAMES), "4d", "a film of 6 frames",
    ),
    "ultrasound in colour": (
        lambda: tags_of(
            "US", placed=False, pixels=EIGHT,
            more={**COLOUR, 0x7FE00010: ("OW", EIGHT.tobytes() * 3)},
        ),
        "colour", "true colour",
    ),
    "RT image": (lambda: tags_of("RT image", "RTIMAGE", placed=False),
                 "not_an_image", "holds an RT image"),
    "fundus": (lambda: tags_of("fundus", "OP", placed=False, pixels=EIGHT),
               "not_an_image", "holds an ophthalmic photograph"),
    "photograph": (lambda: tags_of("photograph", "XC", placed=False, pixels=EIGHT),
                   "not_an_image", "holds a photograph"),
    "video": (lambda: tags_of("video", "XC", placed=False, pixels=FRAMES),
              "not_an_image", "holds a video"),
    "endoscopy": (lambda: tags_of("endoscopy video", "ES", placed=False, pixels=FRAMES),
                  "not_an_image", "holds an endoscopic video"),
    "whole slide": (lambda: tags_of("slide", "SM", placed=False, pixels=FRAMES),
                    "not_an_image", "holds a whole-slide"),
    "slide without its class": (lambda: tags_of("", "SM", placed=False, pixels=EIGHT),
                                "not_an_image", "holds a whole-slide"),
}  # fmt: skip
NO_PICTURE = {
    "PDF": "a PDF document", "report": "a structured report",
    "state": "a presentation state", "plan": "an RT plan",
    "structures": "an RT structure set", "dose": "an RT dose grid",
    "waveform": "a waveform", "raw": "raw data", "spectra": "MR spectra",
    "registration": "a spatial registration", "segmentation": "a DICOM segmentation",
}  # fmt: skip


def rejected(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Ids of the cases, and name -> code of what was put aside."""
    found = drain(index_sources([folder]))
    return [c.id for c in found.cases], {
        Path(r.path).name: r.code for r in found.rejected
    }


@each("name", REFUSED)
def test_what_is_no_scan_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    build, code, words = REFUSED[name]
    path = write(tmp_path / "scan" / "a", build())  # its name says nothing
    found = inspect_scan(path)
    assert found.reason is not None, found.problems
    assert (found.reason.code, found.usable) == (code, False)
    assert words in found.reason.text
    put(tmp_path / "good.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    assert rejected(tmp_path) == (["good"], {"a": code})
    (listed,) = list_series(tmp_path / "scan")
    assert words in listed.trouble


@each("kind", NO_PICTURE)
@each("pixels", [True, False])
def test_objects_that_hold_no_picture_are_called_by_name(
    kind: str, pixels: bool, tmp_path: Path
) -> None:
    more: Any = {} if pixels else {0x7FE00010: None}
    path = write(tmp_path / "a.dcm", tags_of(kind, "OT", placed=False, more=more))
    reason = inspect_scan(path).reason
    assert reason is not None
    assert reason.code == "not_an_image"
    assert reason.text == f"holds {NO_PICTURE[kind]}, not a scan." or (
        reason.text.startswith(f"holds {NO_PICTURE[kind]}")
    )


@each("kind", ["CR", "DX", "MG", "US", "XA"])
def test_pictures_that_need_no_place_stay_sound(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", tags_of(kind, placed=False))
    assert [(p.code, p.fatal) for p in inspect_scan(path).problems] == [
        ("spacing_unknown", False)
    ]
    for tag in (SPACING, 0x00181164, 0x00182010):
        tags = tags_of(kind, placed=False, more={tag: ("DS", "0.2\\0.1")})
        found = inspect_scan(write(tmp_path / f"{tag:x}.dcm", tags))
        assert found.problems == ()
        assert found.header is not None
        assert found.header.affine.spacing_mm[1:] == (0.2, 0.1)
        assert read_scan(found.path).data.shape == (1, 1, 12, 14)


def test_an_x_ray_that_a_program_wrote_as_a_capture_stays_sound(tmp_path: Path) -> None:
    more = {SPACING: ("DS", "0.143\\0.143"), 0x00080064: ("CS", "WSD")}
    tags = tags_of("capture", "CR", placed=False, pixels=EIGHT, more=more)
    assert inspect_scan(write(tmp_path / "a.dcm", tags)).problems == ()


def test_a_volume_that_a_program_wrote_as_captures_stays_sound(tmp_path: Path) -> None:
    series(tmp_path / "scan", 5, "capture", modality="MR")
    found = inspect_scan(tmp_path / "scan")
    assert found.usable
    assert [p.code for p in found.problems] == ["secondary"]
    assert found.header is not None
    assert found.header.affine.spacing_mm == (2.0, 0.75, 0.5)


def test_an_ultrasound_of_one_scale_has_it(tmp_path: Path) -> None:
    def region(dy: float) -> dict[int, tuple[str, Any]]:
        return {
            0x00186024: ("US", 3), 0x00186026: ("US", 3),
            0x0018602C: ("FD", 0.01), 0x0018602E: ("FD", dy),
        }  # fmt: skip

    for name, items, spacing in (
        ("one", [region(0.02)], (0.2, 0.1)),
        ("twice", [region(0.02)] * 2, (0.2, 0.1)),
        ("two", [region(0.02), region(0.03)], (1.0, 1.0)),
    ):
        tags = tags_of("US", placed=False, more={0x00186011: ("SQ", items)})
        header = read_header(write(tmp_path / f"{name}.dcm", tags))
        assert header.affine.spacing_mm[1:] == pytest.approx(spacing)
        unknown = [p.code for p in header.problems] == ["spacing_unknown"]
        assert unknown == (name == "two")


def test_a_scout_in_three_planes_is_one_and_a_scan_of_three_stacks_is_not(
    tmp_path: Path,
) -> None:
    turns = ("1\\0\\0\\0\\1\\0", "0\\1\\0\\0\\0\\-1", "1\\0\\0\\0\\0\\-1")
    for count, folder in ((3, "scout"), (20, "stacks")):
        for number, turn in enumerate(turns):
            for i in range(count):
                place = [0.0, 0.0, 0.0]
                place[(2, 0, 1)[number]] = 3.0 * i
                tags = tags_of(
                    "MR", z=100.0 * number + i,
                    more={
                        ORIENTATION: ("DS", turn),
                        POSITION: ("DS", "\\".join(map(str, place))),
                    },
                )  # fmt: skip
                write(tmp_path / folder / f"{number}-{i}.dcm", tags)
    cases, why = rejected(tmp_path)
    assert len(cases) == 3
    assert all(case.startswith("stacks") for case in cases)
    assert sorted(why.values()) == ["localiser"] * 3


def test_captures_and_reports_beside_a_scan_do_not_hide_it(tmp_path: Path) -> None:
    series(tmp_path, 5)
    write(tmp_path / "dose.dcm", REFUSED["capture that says CT"][0]())
    write(tmp_path / "report.dcm", tags_of("report", "SR", more={0x7FE00010: None}))
    cases, why = rejected(tmp_path)
    assert len(cases) == 1
    assert why == {"dose.dcm": "capture", "report.dcm": "not_an_image"}


def test_an_index_of_a_disc_is_passed_over(tmp_path: Path) -> None:
    series(tmp_path, 5)
    records = element(0x00041220, "SQ", [{0x00041430: ("CS", "PATIENT")}])
    (tmp_path / "DICOMDIR").write_bytes(file_of(records, kind="1.2.840.10008.1.3.10"))
    cases, why = rejected(tmp_path)
    assert (len(cases), why) == (1, {})


# ---- masks given as scans ------------------------------------------------------------


def test_a_mask_is_a_sound_file_and_no_case(tmp_path: Path) -> None:
    put(tmp_path / "good.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    two = np.where(values((20, 30)) > 40, 255, 0).astype(np.uint8)
    sitk.WriteImage(image(two), str(tmp_path / "two.png"))
    three = mask() + 3 * mask()[:, ::-1]
    three[0, 0, 0] = 2
    put(tmp_path / "three.nii.gz", nifti(three, srow=np.eye(3, 4)))
    write(tmp_path / "x.dcm", tags_of("DX", placed=False, pixels=two))
    for name, words in (
        ("two.png", "only two different values (0 and 255): a mask, not a scan."),
        ("three.nii.gz", "patches of 5 whole numbers (0 to 4): a label map"),
    ):
        found = inspect_scan(tmp_path / name)
        assert found.usable  # as a file: it may be somebody's label map
        assert found.objection is not None
        assert words in found.objection.text
    assert rejected(tmp_path) == (
        ["good"],
        {"two.png": "label_map", "three.nii.gz": "label_map", "x.dcm": "label_map"},
    )


def test_a_scan_of_few_grey_levels_is_no_mask(tmp_path: Path) -> None:
    coarse = (values((12, 20, 30)) // 8).astype(np.uint8)  # 12 levels, black around
    coarse[:, :8] = 0
    put(tmp_path / "coarse.nii.gz", nifti(coarse, srow=np.eye(3, 4)))
    dicom_series(tmp_path / "ct")
    cases, why = rejected(tmp_path)
    assert (sorted(cases), why) == (["coarse", "ct"], {})
