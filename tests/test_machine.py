"""What the window is told of the engine: every setting, every device, in JSON."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from homolog import machine
from homolog.backbones import BACKBONES
from homolog.config import from_dict, to_dict
from homolog.methods import METHODS
from homolog.tasks import TASKS
from homolog.training.config import TrainingConfig

FIELD = {
    "name", "type", "item", "length", "optional", "default", "help", "unit", "min",
    "max", "choices", "advanced", "empty", "title",
}  # fmt: skip


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    told = machine.schema()
    assert json.loads(json.dumps(told)) == told
    return told


def all_fields(schema: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found = {"training": schema["training"], "embed": schema["embed"]}
    for kind in ("methods", "tasks", "backbones"):
        for name, told in schema[kind].items():
            found[f"{kind} {name}"] = told["fields"]
    return found


def test_everything_there_is_is_told(schema: dict[str, Any]) -> None:
    assert schema["format"] == 1
    assert list(schema["methods"]) == METHODS.names()
    assert list(schema["tasks"]) == TASKS.names()
    assert list(schema["backbones"]) == BACKBONES.names()
    s2dc = schema["methods"]["s2dc"]
    assert s2dc["spatial"] == [2, 3]
    assert set(s2dc["recipes"]) == {"cpu", "gpu", "paper"}
    assert s2dc["paper"]
    assert schema["tasks"]["segment"]["learned"]
    assert not schema["tasks"]["few_voxels"]["learned"]
    assert schema["backbones"]["resunet"]["spatial_dims"] == 3


def test_every_setting_can_become_a_form_field(schema: dict[str, Any]) -> None:
    for where, fields in all_fields(schema).items():
        for field in fields:
            assert set(field) == FIELD, where
            kinds = ("int", "float", "bool", "str", "tuple", "dict")
            assert field["type"] in kinds, (where, field)
            assert field["help"], (where, field["name"])
            if field["type"] == "tuple":
                assert field["item"] in ("int", "float", "bool", "str", "tuple")
                length, default = field["length"], field["default"]
                assert length is None or default is None or len(default) == length
            if field["default"] is None:
                assert field["optional"], (where, field["name"])
            if field["choices"]:
                assert field["default"] in field["choices"]


def test_defaults_make_the_configuration_they_came_from(
    schema: dict[str, Any],
) -> None:
    classes = {"training": TrainingConfig}
    for kind, registry in (
        ("methods", METHODS), ("tasks", TASKS), ("backbones", BACKBONES),
    ):  # fmt: skip
        for name in registry.names():
            classes[f"{kind} {name}"] = registry.get(name).Config
    fields = all_fields(schema)
    for where, cls in classes.items():
        defaults = {f["name"]: f["default"] for f in fields[where]}
        assert to_dict(from_dict(cls, defaults)) == to_dict(cls())
        names = [f.name for f in dataclasses.fields(cls)]
        assert [f["name"] for f in fields[where]] == names


def test_shapes_of_hints() -> None:
    fields = {f["name"]: f for f in machine.fields_of(TASKS.get("segment").Config)}
    window = fields["window"]
    assert (window["type"], window["item"], window["length"]) == ("tuple", "int", 3)
    assert window["optional"]
    assert window["unit"] == "voxel"
    assert (fields["balance"]["min"], fields["balance"]["max"]) == (0.0, 1.0)
    fields = {f["name"]: f for f in machine.fields_of(BACKBONES.get("resunet").Config)}
    assert fields["channels"]["length"] is None
    assert fields["steps"]["item"] == "tuple"


def test_devices_are_told_with_their_memory() -> None:
    told = machine.devices()
    cpu = told["devices"][0]
    assert cpu["name"] == "cpu"
    assert 0 < cpu["free_bytes"] <= cpu["total_bytes"]
    assert "GB free" in cpu["title"]
    assert told["best"] in [d["name"] for d in told["devices"]]
    assert isinstance(told["bf16"], bool)


@pytest.mark.parametrize("word", ["devices", "doctor"])
def test_the_answer_is_the_last_line_of_a_process(word: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "homolog.machine", word],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["devices" if word == "devices" else "problems"] is not None


def test_an_unknown_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main(["weather"]) == 2
    assert "schema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "card", "driver", "cuda", "wanted"),
    [
        ("Linux", False, False, "12.6", "no CUDA device: training runs on the CPU"),
        ("Linux", True, True, None, "pip install --force-reinstall torch"),
        ("Linux", True, False, "12.6", "Install NVIDIA's driver"),
        ("Linux", True, True, "12.6", "nvidia-smi names the CUDA version"),
        ("Windows", True, True, None, "torch --index-url https://"),
        ("Windows", False, False, None, "no CUDA device"),
        ("Darwin", False, False, None, "MPS"),
    ],
)
def test_the_doctor_says_why_a_gpu_is_not_used(
    tmp_path: Path, monkeypatch: Any, system: str, card: bool, driver: bool,
    cuda: str | None, wanted: str,
) -> None:  # fmt: skip
    for place, vendor, kind in (
        ("0", "0x8086", "0x030000"),  # another maker's display
        ("1", "0x10de" if card else "0x1022", "0x030200"),
        ("2", "0x10de", "0x040300"),  # a card's sound is no GPU
    ):
        folder = tmp_path / "pci" / place
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "class").write_text(kind + "\n")
    if card and system == "Windows":
        (tmp_path / "System32").mkdir()
        (tmp_path / "System32" / "nvml.dll").touch()
    if driver and system == "Linux":
        (tmp_path / "version").touch()
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine, "_PCI", tmp_path / "pci")
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "version")
    assert wanted in machine._why_no_gpu("2.9.0", cuda)
