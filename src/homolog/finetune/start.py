"""What a fine-tuning starts from, and how fast what came learns beside what is new.

The encoder comes whole, and of its decoder what fits.

A head that knows nothing yet sends large, aimless gradients into an encoder that does:
at one rate for all, twenty steps undo what it had learnt. So what is new may learn
alone at first, what came pretrained more slowly, its first layers slowest of all.

Source: Wald et al., "An OpenMind for 3D medical vision self-supervised learning", ICCV
    2025 (nnssl: the decoder is warmed up alone, then all is, "sawtooth"); Bao et al.,
    "BEiT", ICLR 2022 (rates that fall from layer to layer towards the input).
Differs from the paper: the factor is per stage of the encoder, not per layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import ConfigError
from homolog.finetune.settings import SCRATCH, Cases, FinetuneConfig, task_of
from homolog.model_files.card import learnt_of, unlike_store
from homolog.model_files.decoder import (
    SavedDecoder,
    Taken,
    fill_decoder,
    head_classes,
    read_decoder,
)
from homolog.model_files.encoder import LoadedEncoder, load_encoder
from homolog.nn.decoders import Decoder
from homolog.nn.optim import NEVER, Pace, parameter_groups
from homolog.store.learnt_spacing import other_size_note
from homolog.tasks.base import LearnedConfig, LearnedTask, TaskModule
from homolog.training.config import TrainingConfig
from homolog.words import counted

NO_DECODER = "none"


@dataclass(frozen=True, eq=False)
class Start:
    """What a fine-tuning begins with.

    Attributes:
        backbone: The encoder, with its weights.
        origin: Where they came from, for the model's card, JSON types.
        notes: What the user should know of it, in sentences.
        decoder: The decoder that came with it; None: there is none, or it is unwanted.
        loaded: Names of the backbone's tensors that were found.
        taken: Names of the parameters of what is trained (a TaskModule) that came
            trained, encoder and decoder; empty before ``module``, and from scratch.
    """

    backbone: Backbone
    origin: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    decoder: SavedDecoder | None = None
    loaded: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()

    def module(
        self, task: LearnedTask, spec: Mapping[str, Any], seed: int
    ) -> tuple[TaskModule, Start]:
        """What is trained, and the start with what was taken for it.

        Args:
            task: Builds its network on the encoder.
            spec: What the task described.
            seed: Of the weights that begin at random.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = task.network(self.backbone, spec)
            known = {
                id(w) for n, w in self.backbone.named_parameters() if n in self.loaded
            }
            decoder = decoder_of(network)
            filled: Taken | None = None
            if decoder is not None and self.decoder is not None:
                classes = head_classes(
                    spec.get("label_values") or (0,), spec.get("label_names") or {}
                )
                filled = fill_decoder(
                    decoder, self.decoder, classes, str(self.origin["source"])
                )
                known |= {
                    id(weight)
                    for name, weight in decoder.named_parameters()
                    if name in filled.whole
                }
            # a weight average copies the network as it is now
            module = task.module(network, spec)
        own = dict(module.named_parameters())
        taken = frozenset(name for name, weight in own.items() if id(weight) in known)
        return module, self._with(filled, taken)

    def _with(self, filled: Taken | None, taken: frozenset[str]) -> Start:
        if filled is None or self.decoder is None:
            return dataclasses.replace(self, taken=taken)
        return dataclasses.replace(
            self,
            taken=taken,
            notes=(*self.notes, f"{filled.words(self.decoder.source)}."),
            origin={**self.origin, "decoder": filled.to_dict()},
        )


def decoder_of(network: nn.Module) -> Decoder | None:
    """The dense decoder within a network; None where it has none."""
    found = (part for part in network.modules() if isinstance(part, Decoder))
    return next(found, None)


def starting_point(settings: FinetuneConfig, cases: Cases) -> Start:
    """The encoder to start from, where it came from, notes on it, and its decoder.

    A finished fine-tuning is as good a start as a pretraining: its network is taken
    whole, the head's part of every class whose name is known.

    Raises:
        ConfigError: From scratch without a network.
        UnusableInput: The file holds another network than requested, or is damaged.
    """
    channels, store = task_of(settings).channels(cases.all[0].card), cases.all[0].store
    own = dict(settings.backbone)
    name = own.pop("name", None)
    if settings.encoder == SCRATCH:
        if name is None:
            raise ConfigError("training from scratch needs a backbone.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            backbone = build(name, {**own, "in_channels": channels})
        return Start(backbone, {"source": SCRATCH})
    hint = {"name": name, "config": own} if name else None
    loaded = load_encoder(settings.encoder, hint, in_channels=channels)
    notes = ["\n".join(loaded.report.lines())]
    recipe = loaded.card.get("preprocessing")
    unlike = unlike_store(loaded.card, store.preprocessing, settings.encoder)
    notes += [unlike] if unlike else []
    learnt = learnt_of(loaded.card, loaded.folder)
    if recipe is None or recipe.get("spacing_mm") is None:
        sizes = other_size_note(learnt, [c.card for c in cases.all])
        notes += [sizes] if sizes else []
    wanted = settings.task_config.get("decoder") != NO_DECODER
    decoder = None
    if wanted and loaded.folder is not None:
        decoder = read_decoder(loaded.folder, loaded.card)
    return Start(
        loaded.backbone.train(),
        _origin(settings, cases, loaded),
        tuple(notes),
        decoder,
        frozenset(loaded.report.matched),
    )


def _origin(
    settings: FinetuneConfig, cases: Cases, loaded: LoadedEncoder
) -> dict[str, Any]:
    """Where the weights came from, JSON types."""
    card = loaded.card
    origin = {
        "source": str(settings.encoder),
        "encoder_id": loaded.encoder_id,
        "method": card.get("method"),
        "report": loaded.report.to_dict(),
    }
    segments = card.get("kind") not in (None, "encoder")
    if segments:
        origin["kind"] = card["kind"]
    if card.get("uses_labels") or segments:
        # carried labels are no one's
        seen = set(card.get("true_labels_of", card.get("trained_on")) or ())
        known = sorted(c.card.id for c in cases.all if c.card.source_hash in seen)
        origin["labels_of"] = known
    return origin


def encoder_note(origin: Mapping[str, Any], counted_here: Collection[str] = ()) -> str:
    """Labels count where they were used before, too; empty where there were none.

    Args:
        origin: Of the encoder.
        counted_here: Cases whose labels are used again.
    """
    count = len(set(origin.get("labels_of", ())) - set(counted_here))
    if not count:
        return ""
    how = "was trained" if origin.get("kind") else "was pretrained"
    return (
        f"the encoder {how} with labels: {count} labelled cases of these stores were "
        "among its scans, beside those counted here."
    )


# How fast each part learns.


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
