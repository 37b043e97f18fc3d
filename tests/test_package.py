"""The distribution: manifest, resources and what a wheel carries."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from homolog.model_files.card import CARD, read_card
from homolog.model_files.library import ENCODERS, SHIPPED, models_below
from homolog.writing import file_digest, folder_bytes

TOP = Path(__file__).parents[1]


def test_the_manifest_loads_and_its_commands_import() -> None:
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_distribution("napari-homolog")
    assert manifest.contributions.readers
    assert manifest.contributions.sample_data
    for command in manifest.contributions.commands:
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_a_wheel_carries_the_models_that_come_with_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    top = tmp_path / "tree"
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "napari.yaml"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TOP / name, top / name)
    model = top / "src" / "homolog" / "resources" / "encoders" / "tiny"
    model.mkdir(parents=True)
    (top / "src" / "homolog" / "__init__.py").write_text("")
    for name in ("model.json", "encoder.safetensors", "embedder.safetensors"):
        (model / name).write_bytes(b"{}")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir",
         str(tmp_path), str(top)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for file in model.iterdir():
        assert f"homolog/resources/encoders/tiny/{file.name}" in names


def test_models_that_come_with_the_package_are_whole_small_and_licensed() -> None:
    for known in models_below(ENCODERS, SHIPPED):
        card = read_card(known.folder)
        for name, digest in card["sha256"].items():
            assert file_digest(known.folder / name) == digest
        assert folder_bytes(known.folder) <= 6 * 2**20, known.name
        assert card.get("licence"), known.name
        assert card.get("data"), known.name
        assert known.name == known.name.lower()
        assert {p.name for p in known.folder.iterdir()} == {CARD, *card["sha256"]}


def test_the_wheel_holds_the_manifest_once_and_all_resources(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir",
         str(tmp_path), str(TOP)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    checked = subprocess.run(
        [sys.executable, str(TOP / ".ci" / "check_wheel.py"), str(wheel)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
