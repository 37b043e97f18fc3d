"""A model that labels scans, from its folder, ready to predict."""

from __future__ import annotations

from pathlib import Path

import torch

from homolog.backbones._base import build
from homolog.config import from_dict
from homolog.data.learnt_spacing import learnt_of
from homolog.errors import UnusableInput
from homolog.memory import bounded
from homolog.model_card import CARD
from homolog.model_files import load_model
from homolog.tasks import TASKS
from homolog.tasks._base import LearnedTask, Task, Trained
from homolog.training.precision import resolve_precision


def open_trained(
    source: str | Path, device: torch.device, *, precision: str | None = None
) -> tuple[LearnedTask, Trained]:
    """Load a fine-tuned model, as ``open_predictor`` but nothing else.

    Raises:
        UnusableInput: Also where the model was not fine-tuned on labelled cases.
    """
    task, model = open_predictor(source, device, precision=precision)
    if not isinstance(task, LearnedTask):
        raise UnusableInput(
            f"{source} holds a model of kind {model.card.get('kind')!r}, which labels "
            "scans (homolog predict) but cannot score a store; predict into a folder "
            "and take: homolog evaluate FOLDER --labels DIR"
        )
    return task, model


def open_predictor(
    source: str | Path, device: torch.device, *, precision: str | None = None
) -> tuple[Task, Trained]:
    """Load a model that labels scans.

    Args:
        source: Run folder, or a model folder.
        device: Where it is to run.
        precision: ``fp32``, ``bf16`` or ``auto``; None takes fp32 on the CPU and
            ``auto`` on a GPU.

    Returns:
        The task and its network in evaluation mode.

    Raises:
        UnusableInput: No model there, an encoder only, or weights that do not fit.
    """
    loaded = load_model(source)
    state, card = loaded.state, loaded.card
    kind = card.get("kind", "")
    cls = TASKS.get(kind) if kind in TASKS.names() else None
    own_way = None if cls is None else cls.opened(loaded, device, precision)
    if own_way is not None:
        return own_way
    if cls is None or not issubclass(cls, LearnedTask):
        raise UnusableInput(
            f"{source} holds a model of kind {kind!r}, which cannot predict; make one "
            "with: homolog finetune segment STORE --encoder RUN --out RUN2"
        )
    for part in ("backbone", "task_config", "task_spec"):
        if not card.get(part):
            raise UnusableInput(
                f"{loaded.folder / CARD} is damaged ({part} is missing)."
            )
    try:
        task = cls(from_dict(cls.Config, card["task_config"], where=str(source)))
        backbone = build(card["backbone"]["name"], card["backbone"].get("config", {}))
        with bounded(f"the model {source}"):
            network = task.network(backbone, card["task_spec"])
    except (KeyError, IndexError, TypeError) as error:
        raise UnusableInput(
            f"{loaded.folder / CARD} is damaged (the network cannot be built: {error})."
        ) from error
    own = network.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    odd += [n for n in own if n in state and own[n].shape != state[n].shape]
    if odd:
        raise UnusableInput(
            f"the weights in {source} do not fit their model.json: {len(odd)} tensors "
            f"differ, first {odd[0]!r}."
        )
    network.load_state_dict(state)
    network.to(device).eval().requires_grad_(False)
    if precision is None:
        precision = "fp32" if device.type == "cpu" else "auto"
    precision = resolve_precision(precision, device, network)
    learnt = learnt_of(card, loaded.folder)
    if card["task_spec"].get("slicewise"):
        learnt = learnt.planar()
    return task, Trained(network, card["task_spec"], card, device, precision, learnt)
