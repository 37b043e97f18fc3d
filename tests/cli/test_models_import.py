"""``homolog models import`` from a shell's point of view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreign_files import FILES, write
from homolog.cli import main
from homolog.model_files.layouts import LAYOUTS


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> Any:
    monkeypatch.setenv("HOMOLOG_MODELS", str(tmp_path / "library"))

    def call(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["homolog", "models", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        text = capfd.readouterr()
        return stop.value.code, text.out, text.err  # type: ignore[return-value]

    return call


def test_the_help_names_every_layout(shell: Any) -> None:
    status, text, _ = shell("import", "--help")
    assert status == 0
    said = " ".join(text.split())
    for one in LAYOUTS:
        assert one.title in said
        assert one.published[0] in said


def test_a_file_is_taken_into_the_library_by_its_names_alone(
    shell: Any, tmp_path: Path
) -> None:
    name = "resnet50_imagenet.pth"
    source = write(tmp_path, name, FILES[name]())
    status, text, _ = shell("import", source, "--name", "colour", "--json")
    assert status == 0
    said = json.loads(text.splitlines()[-1])
    assert said["backbone"]["name"] == "resnet2d"
    assert Path(said["model"]) == tmp_path / "library" / "colour"
    status, text, _ = shell("check", "colour")
    assert status == 0
    assert "layout: ResNet, 2D" in text
    assert shell("import", source, "--name", "colour")[0] == 2  # it is taken


def test_what_cannot_be_meant_is_refused_as_such(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("<!DOCTYPE html><html></html>")
    status, _, said = shell("import", tmp_path / "w.pt", "--out", tmp_path / "m")
    assert (status, "a web page" in said) == (2, True)
    status, _, said = shell("import", tmp_path / "w.pt")
    assert (status, "either --name or --out" in said) == (2, True)
    assert not (tmp_path / "m").exists()
