"""Points as 3D Slicer of any age and napari write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from each import each
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans.points import read_landmark_points

FCSV = """# Markups fiducial file version = {version}
# CoordinateSystem = {system}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,10.5,-20,30,0,0,0,1,1,1,0,AC,"the, first",
vtkMRMLMarkupsFiducialNode_1,1,2,3,0,0,0,1,1,1,0,,,
"""
LPS = [[30.0, -20.0, 10.5], [3.0, 2.0, 1.0]]  # z, y, x
RAS = [[30.0, 20.0, -10.5], [3.0, -2.0, -1.0]]


@each(
    "version, system, expected",
    [("4.11", "LPS", LPS), ("4.6", "0", RAS), ("4.10", "RAS", RAS), ("4.13", "1", LPS)],
)
def test_fiducial_lists_of_older_slicers(
    tmp_path: Path, version: str, system: str, expected: list[list[float]]
) -> None:
    path = tmp_path / "F.fcsv"
    path.write_text(FCSV.format(version=version, system=system))
    found = read_landmark_points(path)
    assert found.names == ("AC", "vtkMRMLMarkupsFiducialNode_1")
    assert found.mm.tolist() == expected
    path.write_text(FCSV.format(version=version, system="IJK"))
    with pytest.raises(UnusableInput, match="LPS or RAS"):
        read_landmark_points(path)


@each("sign", [",", "\t", ";"])
def test_tables_of_slicer_without_points_that_are_missing(
    tmp_path: Path, sign: str
) -> None:
    rows = [
        "label,r,a,s,defined,selected,visible,locked,description",
        "AC,10.5,-20,30,1,1,1,0,", "PC,0,0,0,0,1,1,0,",
    ]  # fmt: skip
    path = tmp_path / "F.csv"
    path.write_text("\n".join(rows).replace(",", sign) + "\n")
    found = read_landmark_points(path)
    assert found.names == ("AC",)
    assert found.mm.tolist() == [[30.0, 20.0, -10.5]]
    path.write_text("\n".join(rows).replace(",r,a,s,", ",l,p,s,"))
    assert read_landmark_points(path).mm.tolist() == [[30.0, -20.0, 10.5]]


def test_points_of_napari_are_voxels(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("index,axis-0,axis-1,axis-2\n0.0,4.0,5.5,6.0\n1.0,0.0,0.0,0.0\n")
    affine = Affine.of((3.0, 2.0, 1.0), (1.0, 0.0, -1.0))
    found = read_landmark_points(path, affine=affine)
    assert found.mm.tolist() == [[13.0, 11.0, 5.0], [1.0, 0.0, -1.0]]
    with pytest.raises(UnusableInput, match="need the scan"):
        read_landmark_points(path)
    path.write_text("index,axis-0,axis-1\n0.0,5.0,6.0\n")
    assert read_landmark_points(path, affine=affine).mm.tolist() == [[1.0, 10.0, 5.0]]


@each("status", ["missing", "undefined", "preview"])
def test_points_that_were_not_found_are_passed_over(
    tmp_path: Path, status: str
) -> None:
    control = [
        {"id": "1", "label": "AC", "position": [1, 2, 3], "positionStatus": "defined"},
        {"id": "2", "label": "PC", "position": [0, 0, 0], "positionStatus": status},
    ]
    markups = {"markups": [{"type": "Fiducial", "controlPoints": control}]}
    path = tmp_path / "F.mrk.json"
    path.write_text(json.dumps(markups))
    assert read_landmark_points(path).names == ("AC",)
    rows = [
        {"name": "AC", "z_mm": 1, "y_mm": 2, "x_mm": 3, "status": "found"},
        {"name": "PC", "z_mm": 0, "y_mm": 0, "x_mm": 0, "status": status.upper()},
    ]
    path = tmp_path / "F.json"
    path.write_text(json.dumps(rows))
    found = read_landmark_points(path)
    assert found.names == ("AC",)
    assert np.array_equal(found.mm, [[1, 2, 3]])
