"""Every number of a published recipe says where it is from."""

from __future__ import annotations

import dataclasses

import pytest

from homolog.backbones import BACKBONES
from homolog.methods import METHODS
from homolog.recipes import KINDS, PaperScans, leaves, origins, told
from homolog.training.config import TrainingConfig

PUBLISHED = [
    (name, recipe) for name in METHODS.names() for recipe in METHODS.get(name).SOURCES
]


def fields_of(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize("name", METHODS.names())
def test_a_recipe_paper_has_sources(name: str) -> None:
    cls = METHODS.get(name)
    assert "paper" not in cls.RECIPES or "paper" in cls.SOURCES, (
        f"{name}: say in SOURCES['paper'] where every setting of RECIPES['paper'] is "
        "from."
    )
    assert set(cls.SOURCES) <= set(cls.RECIPES)


@pytest.mark.parametrize(("name", "recipe"), PUBLISHED)
def test_every_setting_is_from_somewhere(name: str, recipe: str) -> None:
    """Paper: All recipes."""
    cls = METHODS.get(name)
    tables, where = cls.RECIPES[recipe], origins(cls.SOURCES[recipe])
    without = [key for key, _ in leaves(tables) if key not in where]
    assert not without, f"{name}, {recipe}: {without} have no origin in SOURCES."
    network = BACKBONES.get(tables["backbone"]["name"])
    known = {
        "method": fields_of(cls.Config),
        "backbone": {"name", *fields_of(network.Config)},
        "training": fields_of(TrainingConfig),
    }
    for key in where:
        table, _, setting = key.partition(".")
        assert setting in known[table], f"{name}: {key} of SOURCES is no setting."


def test_what_is_ours_says_so() -> None:
    """Paper: S2DC training; Hundred Million Table I, 2D."""
    s2dc = origins(METHODS.get("s2dc").SOURCES["paper"])
    assert s2dc["method.temperature"].startswith("own")
    assert s2dc["method.queue_length"].startswith("own")
    hundred = origins(METHODS.get("hundred_million").SOURCES["paper"])
    assert hundred["training.warmup_steps"].startswith("own")
    assert "92" in hundred["method.small_size"]
    assert METHODS.get("mae").RECIPES["paper"]["training"]["beta2"] == 0.95
    with pytest.raises(ValueError, match="begins with paper, code and own"):
        origins({"hearsay": "method.size"})
    with pytest.raises(ValueError, match="two origins"):
        origins({"paper": "method.size", "own: why": "method.size"})
    assert KINDS == ("paper", "code", "own")


def test_the_column_of_volumes_is_there() -> None:
    """Paper: Hundred Million Table I, 3D."""
    recipe = METHODS.get("hundred_million").RECIPES["paper_3d"]
    steps, share = recipe["training"]["steps"], recipe["method"]["freeze"]
    assert round(share * steps, -2) == 4000
    assert recipe["method"]["prototypes"] == 1500
    size, small = recipe["method"]["size"], recipe["method"]["small_size"]
    assert [n // 2 for n in size[1:]] == small[1:] == [112, 96]


def test_a_recipe_is_told_line_by_line() -> None:
    lines = told({"method": {"size": [1, 2.5], "on": True}}, {"own: why": "method.on"})
    assert [line.split(None, 2) for line in lines] == [
        ["method.size", "1,2.5"], ["method.on", "true", "own: why"]
    ]  # fmt: skip


def test_scans_unlike_the_papers_are_told_with_the_command() -> None:
    """Paper: Alice A.1, window; SAM window; MixCL 3.1, window."""
    scans = PaperScans("4.1", (-125.0, 255.0), (2.0, 1.5, 1.5))
    assert scans.differs((-125.0, 255.0), (2.0, 1.5, 1.501), ["CT"]) == []
    assert len(scans.differs((-1000.0, 1000.0), None, ["CT"])) == 2
    assert len(scans.differs((-1000.0, 1000.0), None, ["MR"])) == 1  # no window
    found = scans.command(
        ["/data/a set/imagesTr/1.nii", "/data/a set/imagesTr/2.nii"],
        ["/data/a set/labelsTr/1.nii"], "stores/ct",
    )  # fmt: skip
    assert found == (
        "homolog prepare '/data/a set/imagesTr' --labels '/data/a set/labelsTr' "
        "--out stores/ct_paper --window-hu=-125,255 --spacing 2,1.5,1.5"
    )
    assert scans.command([], [], "ct").startswith("homolog prepare SOURCE --out ct_")
    windows = {
        "alice": (-125, 255), "mixcl": (-150, 250),
        "anatomical_embedding": (-1024, 3071),
    }  # fmt: skip
    for name, window in windows.items():
        known = METHODS.get(name).paper_scans
        assert known is not None
        assert known.window_hu == window
