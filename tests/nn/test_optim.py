"""Parameter groups and schedule."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from homolog.nn.optim import (
    NEVER,
    Pace,
    parameter_groups,
    prefix_factor,
    scheduled,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 2)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 3))
        self.dustbin = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def named(model: nn.Module, group: dict[str, object]) -> set[str]:
    params = group["params"]
    assert isinstance(params, list)
    ids = {id(p) for p in params}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_norms_biases_scalars_and_positions_do_not_decay() -> None:
    model = Model()
    decayed, rest = parameter_groups(model, 0.1)
    assert named(model, decayed) == {"encoder.0.weight", "head.weight"}
    assert named(model, rest) == {
        "encoder.0.bias", "encoder.1.weight", "encoder.1.bias", "head.bias",
        "pos_embed", "dustbin",
    }  # fmt: skip
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = Model()
    groups = parameter_groups(model, 0.1, factor={"encoder.": 0.1, "encoder.1": 0.5})
    ids = [id(p) for g in groups for p in g["params"]]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(ids) == len(set(ids))
    assert set(ids) == trainable


def test_the_encoder_learns_slower_by_its_factor() -> None:
    model = Model()
    groups = parameter_groups(model, 0.1, learning_rate=1e-3, factor={"encoder.": 0.1})
    rates = {name: g["lr"] for g in groups for name in named(model, g)}
    assert rates["encoder.0.weight"] == pytest.approx(1e-4)
    assert rates["encoder.1.bias"] == pytest.approx(1e-4)
    assert rates["head.weight"] == pytest.approx(1e-3)
    torch.optim.AdamW(groups)  # any torch optimiser takes them


def test_factor_zero_leaves_parameters_out_and_nothing_left_is_an_error() -> None:
    model = Model()
    groups = parameter_groups(model, 0.1, factor={"encoder.": 0.0})
    assert not any("encoder" in n for g in groups for n in named(model, g))
    with pytest.raises(ValueError, match="no parameter left to train"):
        parameter_groups(model, 0.1, factor={"": 0.0})


def test_the_longest_prefix_wins() -> None:
    factor = prefix_factor({"a.": 0.5, "a.b.": 0.25})
    assert [factor(n) for n in ("a.b.c", "a.c", "d")] == [0.25, 0.5, 1.0]


def test_the_schedule_rises_then_falls_to_its_floor() -> None:
    factors = [scheduled(s, 100, 10, 0.05) for s in range(101)]
    assert factors[:11] == pytest.approx([(s + 1) / 11 for s in range(11)])
    assert factors[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.05 + 0.95 / 2)
    assert factors[100] == 0.05
    assert scheduled(500, 100, 10, 0.05) == 0.05


def test_the_schedule_bears_odd_lengths() -> None:
    assert scheduled(0, 1) == 1.0
    assert scheduled(3, 4, 10) == pytest.approx(4 / 11)
    assert scheduled(0, 0) == 0.0


def test_the_plain_pace_is_the_schedule_bit_for_bit() -> None:
    for total, warmup, floor in ((100, 10, 0.05), (7, 1, 0.01), (1500, 0, 0.0)):
        steps = [*range(total + 2), 0.5, total / 3]
        assert [Pace().rate(s, total, warmup, floor) for s in steps] == [
            scheduled(s, total, warmup, floor) for s in steps
        ]


def test_a_sawtooth_rises_twice_and_what_joins_rises_with_it() -> None:
    new, old = Pace(rises=(0.0, 0.2)), Pace(0.3, 0.2, (0.2,))
    ours = [new.rate(s, 100, 5) for s in range(101)]
    theirs = [old.rate(s, 100, 5) for s in range(101)]
    assert ours[:6] == pytest.approx([(s + 1) / 6 for s in range(6)])
    assert ours[5:20] == [1.0] * 15  # held until the others join
    assert ours[20:26] == pytest.approx([(s + 1) / 6 for s in range(6)])
    assert all(a > b for a, b in itertools.pairwise(ours[25:]))
    assert ours[100] == 0.0
    assert theirs[:20] == [0.0] * 20
    assert theirs[20:] == pytest.approx([0.3 * rate for rate in ours[20:]])


def test_every_stage_may_have_a_course_of_its_own() -> None:
    """Paper: Joint stages."""
    paced = Pace(0.5, rises=(0.0, 0.4, 0.6), falls=True)
    rates = [paced.rate(s, 100, 5, 0.01) for s in range(101)]
    for begin, end in ((0, 40), (40, 60), (60, 100)):
        own = [0.5 * scheduled(s, end - begin, 5, 0.01) for s in range(end - begin)]
        assert rates[begin:end] == pytest.approx(own)
    assert rates[100] == pytest.approx(0.005)


def test_poly_falls_by_the_power_of_what_is_left() -> None:
    """Paper: Alice Table 8, poly."""
    found = [Pace().rate(s, 100, 10, 0.0, "poly") for s in (0, 10, 55, 100)]
    assert found == pytest.approx([1 / 11, 1.0, 0.5**0.9, 0.0])


def test_a_pace_may_join_the_curve_of_the_others_or_none() -> None:
    late = Pace(start=0.5)
    assert [late.rate(s, 10) for s in range(5)] == [0.0] * 5
    assert late.rate(5, 10) == scheduled(5, 10)
    assert not any(Pace(start=NEVER).rate(s, 10) for s in range(11))


def test_parameters_of_one_pace_are_one_group_each_kind() -> None:
    model = Model()
    slow = Pace(0.1, 0.25, (0.25,))
    groups = parameter_groups(
        model, 0.1, pace=lambda name: slow if name.startswith("encoder.") else Pace()
    )
    assert [(g["pace"], g["weight_decay"]) for g in groups] == [
        (Pace(), 0.1), (Pace(), 0.0), (slow, 0.1), (slow, 0.0),
    ]  # fmt: skip
    assert named(model, groups[2]) == {"encoder.0.weight"}
