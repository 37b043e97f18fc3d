from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from each import each
from homolog.config import (
    ConfigError,
    check,
    config_hash,
    from_dict,
    merge,
    option,
    parse_assignments,
    to_dict,
)
from homolog.training.config import TrainingConfig


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.1, "a rate", minimum=0.0, maximum=1.0, unit="per step")


@dataclass(frozen=True)
class Outer:
    size: tuple[int, int, int] = option((8, 8, 8), "crop", minimum=1, unit="voxels")
    name: str = option("a", "which", choices=("a", "b"))
    spacing_mm: tuple[float, float, float] | None = None
    deep: bool = False
    inner: Inner = field(default_factory=Inner)


def test_round_trip_through_plain_types() -> None:
    config = Outer(size=(1, 2, 3), spacing_mm=(1.0, 2.0, 3.0), inner=Inner(0.5))
    assert from_dict(Outer, to_dict(config)) == config


@each(
    "data, message",
    [
        ({"sice": 3}, "has no setting 'sice'; known settings: deep, inner"),
        ({"size": [1, 2]}, "size must be"),
        ({"size": [0, 2, 2]}, "size must be in 1..inf voxels, got (0, 2, 2)"),
        ({"name": "c"}, "name must be one of 'a', 'b', got 'c'"),
        ({"deep": 1}, "deep must be true or false, got 1"),
        ({"inner": {"rate": 2}}, "rate must be in 0.0..1.0 per step, got 2.0"),
        ({"inner": {"rate": float("nan")}}, "rate must be in"),
        ({"inner": {"rate": True}}, "rate must be a number, got True"),
        ({"spacing_mm": "x"}, "spacing_mm must be"),
    ],
)
def test_nonsense_is_refused_with_what_was_expected(data: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(Outer, data, where="recipe.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("recipe.toml")


def test_whole_floats_are_numbers_and_none_is_kept() -> None:
    built = from_dict(Outer, {"size": [4.0, 5, 6], "spacing_mm": None})
    assert built.size == (4, 5, 6)
    assert built.spacing_mm is None


def test_check_sees_values_set_in_code() -> None:
    with pytest.raises(ConfigError):
        check(Outer(inner=Inner(rate=-1.0)))


def test_assignments_become_nested_values() -> None:
    parsed = parse_assignments(
        ["method.tau=0.2", "crop=64,64,32", "name=swin", "flag=true", "method.a=[1,2]"]
    )
    assert parsed == {
        "method": {"tau": 0.2, "a": [1, 2]},
        "crop": [64, 64, 32],
        "name": "swin",
        "flag": True,
    }
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_assignments(["tau"])


def test_merge_is_deep_and_leaves_its_inputs_alone() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 1}
    assert merge(base, {"a": {"y": 3}}, {"b": 2}) == {"a": {"x": 1, "y": 3}, "b": 2}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}


def test_the_hash_follows_values_not_order() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    assert config_hash(Inner(0.1)) != config_hash(Inner(0.2))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 10**400])
def test_numbers_that_no_float_holds_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="learning_rate must be a finite number"):
        from_dict(TrainingConfig, {"learning_rate": value})
