"""How fast what came pretrained learns beside what is new.

A head that knows nothing yet sends large, aimless gradients into an encoder that does:
at one rate for all, twenty steps undo what it had learnt. So what is new may learn
alone at first, what came pretrained more slowly, its first layers slowest of all.

Source: Wald et al., "An OpenMind for 3D medical vision self-supervised learning", ICCV
    2025 (nnssl: the decoder is warmed up alone, then all is, "sawtooth"); Bao et al.,
    "BEiT", ICLR 2022 (rates that fall from layer to layer towards the input).
Differs from the paper: the factor is per stage of the encoder, not per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import nn

from homolog.nn.optim import NEVER, Pace, parameter_groups
from homolog.tasks.base import LearnedConfig, TaskModule
from homolog.training.config import TrainingConfig
from homolog.words import counted


def groups_of(
    module: TaskModule,
    config: LearnedConfig,
    training: TrainingConfig,
    came: Collection[str],
) -> list[dict[str, Any]]:
    """Groups for the optimiser, each with its pace.

    Args:
        module: What is trained.
        config: Of its task.
        training: Weight decay and the like.
        came: Parameters of ``module`` that came pretrained.
    """
    return parameter_groups(
        module, training.weight_decay, pace=paces(module, config, came)
    )


def paces(
    module: TaskModule, config: LearnedConfig, came: Collection[str]
) -> Callable[[str], Pace]:
    """Parameter name -> when and how fast it learns.

    Where nothing came pretrained (from scratch), the encoder is meant: whoever gives a
    rate to it alone wants that. Where nothing is new, nothing can learn first.

    Args:
        module: What is trained.
        config: Of its task.
        came: Parameters of ``module`` that came pretrained.
    """
    slow = frozenset(came) or encoder_names(module)
    first = config.head_first if _is_any_new(module, slow) else 0.0
    rises = (0.0, first) if config.sawtooth and 0.0 < first < 1.0 else (0.0,)
    new = Pace(rises=rises)
    shares = stage_factors(module, config.layer_decay)

    def pace(name: str) -> Pace:
        if name not in slow:
            return new
        factor = config.encoder_factor * shares.get(name, 1.0)
        if factor <= 0.0:
            return Pace(start=NEVER)
        return Pace(factor, first, rises[-1:])

    return pace


def stage_factors(module: TaskModule, decay: float) -> dict[str, float]:
    """Factor of every parameter of the encoder: ``decay`` a stage from the coarsest."""
    if decay == 1.0:
        return {}
    encoder, prefix = module.encoder(), _place(module)
    last = len(encoder.strides) - 1
    return {
        f"{prefix}{name}": decay ** (last - depth)
        for name, depth in encoder.depths().items()
    }


def encoder_names(module: TaskModule) -> frozenset[str]:
    """All parameters of the encoder, by their names in ``module``."""
    return names_of(module, module.encoder().parameters())


def names_of(module: nn.Module, parameters: Iterable[nn.Parameter]) -> frozenset[str]:
    """The names in ``module`` of parameters that are part of it."""
    wanted = {id(parameter) for parameter in parameters}
    return frozenset(n for n, p in module.named_parameters() if id(p) in wanted)


def sentences(
    module: TaskModule,
    config: LearnedConfig,
    training: TrainingConfig,
    came: Collection[str],
) -> list[str]:
    """What was set of all this, a sentence each; from scratch only what was asked for.

    Args:
        module: What is trained.
        config: Of its task.
        training: Its warm-up.
        came: Parameters of ``module`` that came pretrained.
    """
    slow = frozenset(came) or encoder_names(module)
    first = config.head_first if _is_any_new(module, slow) else 0.0
    what = "what came pretrained" if came else ""
    told = _rate_sentences(module, config, what)
    if first >= 1.0:
        told = [f"only what is new learns; {what or 'the encoder'} stays as it came"]
    elif first > 0.0:
        anew = ", then all of it, all rates rising anew" if config.sawtooth else ""
        told.append(
            f"what is new learns alone in the first {first:.0%} of the training{anew}"
        )
    if training.warmup > 0:
        again = ", and again when the rest joins"
        twice = 0.0 < first < 1.0 and config.sawtooth
        told.append(
            f"rates rise over {training.warmup:.0%} of the training{again * twice}"
        )
    if config.average > 0:
        told.append(
            f"the weights kept are an average of those of the steps, momentum "
            f"{config.average:g}"
        )
    return [f"{text}." for text in told]


def _rate_sentences(module: TaskModule, config: LearnedConfig, what: str) -> list[str]:
    """Of ``encoder_factor`` and ``layer_decay``; ``what``: empty from scratch."""
    factor, decay = config.encoder_factor, config.layer_decay
    name = what or "the encoder"
    if factor <= 0.0:
        return [f"{name} stays as it is: its rate is 0"]
    told = []
    if what or factor != 1.0:
        share = "" if factor == 1.0 else f"{factor:g} times "
        told.append(f"{name} learns at {share}the rate of what is new")
    if decay != 1.0:
        stages = len(module.encoder().strides)
        least = factor * decay ** (stages - 1)
        told.append(
            f"the encoder's rate falls by {decay:g} a stage towards its first layers "
            f"({counted(stages, 'stage')}), to {least:.2g} times that of what is new"
        )
    return told


def _is_any_new(module: nn.Module, came: Collection[str]) -> bool:
    return any(
        parameter.requires_grad and name not in came
        for name, parameter in module.named_parameters()
    )


def _place(module: TaskModule) -> str:
    """What the names of the encoder's parameters begin with."""
    encoder = module.encoder()
    return next(f"{n}." for n, part in module.named_modules() if part is encoder)
