from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from homolog.backbones import BACKBONES
from homolog.registry import Registry


def _registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Registry:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_base.py").write_text("class Thing:\n    pass\n")
    (package / "good.py").write_text(
        f"from {name}._base import Thing\nclass Good(Thing):\n    pass\n"
    )
    (package / "double.py").write_text(
        f"from {name}._base import Thing\nclass A(Thing): pass\nclass B(Thing): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry(name, f"{name}._base:Thing", "thing")


def test_a_new_file_is_a_new_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = _registry(tmp_path, monkeypatch, "things_a")
    assert registry.names() == ["double", "good"]
    assert registry.get("good").__name__ == "Good"


def test_messages_name_what_is_known_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = _registry(tmp_path, monkeypatch, "things_b")
    with pytest.raises(ValueError, match="unknown thing 'bad'; known: double, good"):
        registry.get("bad")
    with pytest.raises(TypeError, match="exactly one Thing, found 2: A, B"):
        registry.get("double")


def test_listing_names_imports_no_entry() -> None:
    code = (
        "import sys\nfrom homolog.methods import METHODS\nassert METHODS.names()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_knows_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = _registry(tmp_path, monkeypatch, "things_d")
    good = registry.get("good")
    assert registry.name_of(good) == "good"
    far = type("Far", (good,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match="Far is no thing known by name"):
        registry.name_of(far)
    registry.add("far", far)
    assert registry.name_of(far) == "far"


def test_another_distribution_adds_a_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far_away.py").write_text(
        "from napari_plugin_engine import HookImplementationMarker\n"
        "extends = HookImplementationMarker('homolog')\n"
        "class Far: pass\n"
        "@extends\n"
        "def homolog_backbones():\n"
        "    return {'far': 'far_away:Far'}\n"
    )
    info = tmp_path / "far_away-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: far-away\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[homolog.extension]\nfar-away = far_away\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    fresh: Registry = Registry("homolog.backbones", BACKBONES._base, "backbone")
    assert "far" in fresh.names()
    assert fresh.get("far").__name__ == "Far"
    with pytest.raises(ValueError, match="exists already"):
        fresh.add("swin", object)
