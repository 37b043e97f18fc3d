"""Momentum teacher (E-T1, E-T2)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from each import each
from homolog.nn.optim import Teacher, parameter_groups


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        ).double()


@each("momentum", [0.0, 0.9, 0.999, 1.0])
def test_e_t1_the_teacher_follows_the_closed_form(momentum: float) -> None:
    first, student = network(0), network(1)
    teacher = Teacher(first)
    for _ in range(7):
        teacher.update(student, momentum)
    share = momentum**7
    for name, parameter in teacher.module.named_parameters():
        start, end = dict(first.named_parameters()), dict(student.named_parameters())
        expected = share * start[name] + (1 - share) * end[name]
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=0)


def test_e_t1_buffers_are_copied() -> None:
    student = network(0)
    teacher = Teacher(student)
    student(torch.randn(8, 4, dtype=torch.float64))
    teacher.update(student, 0.999)
    copied = dict(teacher.module.named_buffers())
    for name, buffer in student.named_buffers():
        assert torch.equal(copied[name], buffer)


def test_e_t2_no_gradient_reaches_the_teacher() -> None:
    student = network(0)
    whole = nn.ModuleDict({"student": student, "teacher": Teacher(student)})
    x = torch.randn(8, 4, dtype=torch.float64)
    (whole["student"](x) - whole["teacher"](x)).square().sum().backward()
    assert all(p.grad is None for p in whole["teacher"].parameters())
    trained = {id(p) for g in parameter_groups(whole, 0.1) for p in g["params"]}
    assert trained == {id(p) for p in student.parameters()}


def test_the_teacher_starts_as_a_copy_and_stays_in_evaluation_mode() -> None:
    student = network(0)
    teacher = Teacher(student)
    nn.ModuleList([teacher]).train()
    assert not any(m.training for m in teacher.modules())
    with torch.no_grad():
        student[0].weight.zero_()
    assert teacher.module[0].weight.abs().sum() > 0


def test_a_student_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in parameter '1\.bias'"):
        Teacher(nn.Sequential(nn.Linear(2, 2))).update(
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.9
        )
    with pytest.raises(ValueError, match=r"0\.\.1, got 1\.5"):
        Teacher(nn.Linear(2, 2)).update(nn.Linear(2, 2), 1.5)
