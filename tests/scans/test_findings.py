"""Several findings of one scan, as tables write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from each import each
from homolog.errors import UnusableInput
from homolog.index.manifests import read_manifest
from homolog.label_names import (
    findings_cell,
    findings_of,
    findings_text,
    merged_findings,
    says_none,
)


@each("cell, text", [
        ("nodule | effusion|nodule", "effusion|nodule"), ("effusion", "effusion"),
        ("", None), (None, None), (" No Finding ", "No Finding"), ([], "no finding"),
        (["b", "a"], "a|b"), (["a"], "a"), (1, "1"), ("a|", "a"), ("|", None),
    ])  # fmt: skip
def test_cells(cell: object, text: str | None) -> None:
    assert findings_cell(cell) == text


def test_there_and_back() -> None:
    assert findings_of("nodule|effusion") == ("effusion", "nodule")
    assert findings_of("No finding") == ()
    assert findings_text(("b", "a")) == "a|b"
    assert findings_of(findings_text(())) == ()
    assert not says_none(None)
    assert not says_none("normal")


def test_findings_and_none_at_once_are_refused() -> None:
    with pytest.raises(UnusableInput, match=r"or none, got 'effusion\|no finding'"):
        findings_cell("effusion|no finding")


def test_rows_about_one_scan_are_put_together() -> None:
    assert merged_findings("b", "a") == "a|b"
    assert merged_findings("a", "a") == "a"
    assert merged_findings(None, "a") == "a"
    assert merged_findings("no finding", "a") == "a"


def test_a_manifest_tells_findings_and_types(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"")
    (tmp_path / "scans.csv").write_text(
        "image,class,types\na.png,nodule|effusion,small|left\nb.png,no finding,\n"
        "c.png,,\nd.png,nodule|no finding,\nb.png,,\n"
    )
    found = read_manifest(tmp_path / "scans.csv")
    told = {c.image.stem: (c.target, c.types) for c in found.candidates}
    assert told == {
        "a": ("effusion|nodule", "left|small"), "b": ("no finding", None),
        "c": (None, None),
    }  # fmt: skip
    assert [r.reason for r in found.rejected] == [
        "a scan shows findings or none, got 'nodule|no finding'."
    ]
