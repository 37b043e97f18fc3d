"""A network as ONNX or TorchScript, with a program that labels scans by it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import homolog
from homolog import __version__
from homolog.errors import JobError, UnusableInput
from homolog.events import drain
from homolog.exporting.network import (
    IMAGE,
    ROUNDING,
    Sides,
    Source,
    differs,
    open_source,
    other_window,
    random_window,
    scan_recipe,
    traced,
)
from homolog.exporting.told import (
    CARD_FILE,
    card_lines,
    labels_of,
    licence_of,
    title_of,
)
from homolog.scans.files import read_scan
from homolog.scans.volume import LabelMap
from homolog.words import times
from homolog.writing import write_json, write_text, writing_folder

OPSET = 17
PROGRAMS = Path(homolog.__file__).parent / "resources" / "export"
RECIPE, SCANS, PROGRAM = "homolog.json", "homolog_scan.py", "label_scan.py"
_FILES = {"onnx": "model.onnx", "torchscript": "model.ts"}
# Labels that may differ between two programs: rounding where two are equally likely.
EQUAL_LABELS = 0.999
_LACKING = (
    "--as onnx needs the packages onnx and onnxruntime: pip install "
    "'napari-homolog[export]'"
)
_UNLIKE = "what was written answers otherwise than the model"


def export_network(
    source: Path, out: Path, kind: str, check: Path | None = None
) -> dict[str, Any]:
    """Write a folder with the network, its card and, where it labels, a program.

    Args:
        source: Run or model folder.
        out: New folder.
        kind: ``onnx`` or ``torchscript``.
        check: A scan that both label, for the share of equal labels.

    Returns:
        ``sides`` (``any`` or ``fixed``), ``difference``, ``equal_labels`` and
        ``lines``.

    Raises:
        UnusableInput: Not such a model, packages are missing.
        JobError: What was written answers otherwise than the model.
    """
    model = open_source(source, kind)
    if kind == "onnx":
        _onnx()
    if check is not None and model.kind != "segment":
        raise UnusableInput(f"--check needs a model that labels voxels, not {source}.")
    script, sides = traced(model)
    with writing_folder(out) as folder:
        file = folder / _FILES[kind]
        if kind == "torchscript":
            script.save(str(file))
        else:
            sides = _write_onnx(model, sides, file)
        told = {"sides": sides.words, "difference": sides.difference}
        if model.kind == "segment":
            put_program(folder, model, sides)
        if check is not None:
            told["equal_labels"] = _same_labels(model, folder, check)
        write_json(folder / CARD_FILE, {**model.card, "exported": told})
        write_text(folder / "README.md", _page(model, kind, sides, told))
        write_text(folder / "LICENSE", licence_page(model.card))
    return {**told, "lines": _lines(model, kind, sides, told)}


def _onnx() -> tuple[ModuleType, ModuleType]:
    """The packages onnx and onnxruntime.

    Raises:
        UnusableInput: They are not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UnusableInput(_LACKING) from error
    return onnx, onnxruntime


def _write_onnx(model: Source, sides: Sides, file: Path) -> Sides:
    """Write the file, with free sides where those give equal numbers."""
    onnx, _ = _onnx()
    for free in (True, False) if sides.free else (False,):
        wanted = replace(sides, free=free)
        _trace_onnx(model, file, wanted)
        try:
            run = session(file)
        except Exception as error:
            raise _no_onnx(error) from error
        difference = differs(model, run, model.window)
        other = other_window(model) if free else None
        if other is not None and not differs(model, run, other) <= ROUNDING:
            continue
        if sides.batch:
            difference = max(difference, differs(model, run, model.window, batch=2))
        if not difference <= ROUNDING:
            raise JobError(
                f"{_UNLIKE} (by {difference:.2g} of its largest answer); nothing was "
                "written."
            )
        content = onnx.load(str(file))
        told = {"homolog": __version__, "card": json.dumps(model.card)}
        onnx.helper.set_model_props(content, told)
        onnx.save(content, str(file))
        return replace(wanted, difference=difference)
    raise JobError(f"{_UNLIKE}; nothing was written.")


@torch.no_grad()
def _trace_onnx(model: Source, file: Path, sides: Sides) -> None:
    batch = {0: "batch"} if sides.batch else {}
    changing = {**batch, **({2: "z", 3: "y", 4: "x"} if sides.free else {})}
    flat = model.kind == "classify"
    axes = dict.fromkeys(model.outputs, batch if flat else changing)
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.network,
                (random_window(model, model.window),),
                str(file),
                input_names=[IMAGE],
                output_names=list(model.outputs),
                dynamic_axes={IMAGE: changing, **axes},
                opset_version=OPSET,
                dynamo=False,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise _no_onnx(error) from error


def _no_onnx(error: Exception) -> UnusableInput:
    first = str(error).strip().split("\n")[0][-200:]
    return UnusableInput(
        f"this network cannot be written as ONNX ({first}); take --as torchscript."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is printed: where it fails, torch prints the whole network.

    By the file itself, for it prints past Python.
    """
    try:
        kept = os.dup(1)
    except OSError:  # a program without a terminal
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def session(file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """An ONNX file as a function of tensors, on the CPU."""
    _, runtime = _onnx()
    opened = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, ...]:
        found = opened.run(None, {IMAGE: image.numpy()})
        return tuple(torch.from_numpy(np.asarray(one)) for one in found)

    return run


def put_program(folder: Path, model: Source, sides: Sides) -> None:
    """What labels scans by the network: recipe, preparation, command."""
    write_json(folder / RECIPE, scan_recipe(model, sides))
    for name in (SCANS, PROGRAM):
        write_text(folder / name, (PROGRAMS / name).read_text(encoding="utf-8"))


def program(folder: Path, name: str = SCANS) -> ModuleType:
    """A Python file of an exported folder, run as a module of its own."""
    told = importlib.util.spec_from_file_location(
        f"exported_{Path(name).stem}", folder / name
    )
    assert told is not None
    assert told.loader is not None
    module = importlib.util.module_from_spec(told)
    sys.modules[told.name] = module  # dataclasses look themselves up there
    told.loader.exec_module(module)
    return module


def own_labels(model: Source, scan: Path) -> tuple[Any, NDArray[Any]]:
    """The scan, and the labels that ``homolog predict`` gives it."""
    assert model.task is not None
    assert model.model is not None
    volume = read_scan(scan)
    labels = drain(model.task.run(volume, model.model))
    assert isinstance(labels, LabelMap)
    return volume, labels.data


def _same_labels(model: Source, folder: Path, scan: Path) -> float:
    """Share of voxels that the folder's own code labels as we do.

    Raises:
        JobError: Fewer than ``EQUAL_LABELS``.
    """
    volume, own = own_labels(model, scan)
    module = program(folder)
    recipe = module.read_recipe(folder / RECIPE)
    if (folder / _FILES["onnx"]).exists():
        run = session(folder / _FILES["onnx"])
    else:
        script = torch.jit.load(str(folder / _FILES["torchscript"]))  # type: ignore[no-untyped-call]

        def run(image: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (script(image),)

    modality = "" if recipe["modality"] else volume.modality
    prepared = module.prepare(volume.data, volume.affine.matrix, recipe, modality)
    classes = module.label(
        prepared, lambda image: run(torch.from_numpy(image))[0].numpy(), recipe
    )
    found = module.restore(classes, prepared.grid, recipe)
    return equal_share(own, found, scan)


def equal_share(own: NDArray[Any], found: NDArray[Any], scan: Path) -> float:
    """Share of equal labels.

    Raises:
        JobError: It is below ``EQUAL_LABELS``.
    """
    if own.shape != found.shape:
        raise JobError(f"{_UNLIKE} on {scan}: {found.shape} voxels, not {own.shape}.")
    share = float((own == found).mean())
    if share < EQUAL_LABELS:
        raise JobError(
            f"{_UNLIKE} on {scan}: {share:.4%} of its voxels get equal labels, at "
            f"least {EQUAL_LABELS:.1%} were expected; nothing was written."
        )
    return share


# What is told of it.


def check_words(told: Mapping[str, Any]) -> list[str]:
    """What was compared, in sentences."""
    lines = [
        "A random window: largest difference from Homolog's own answer "
        f"{told['difference']:.1e} of the largest answer."
    ]
    if "equal_labels" in told:
        lines.append(
            f"A scan: {told['equal_labels']:.4%} of its voxels have the labels of "
            "`homolog predict` (32-bit, one window at a time, no mirroring)."
        )
    return lines


def sides_words(model: Source, sides: Sides) -> str:
    """Which windows it takes."""
    size = times(model.window)
    batch = "any number of windows" if sides.batch else "one window"
    if not sides.free:
        return f"Sides are fixed: {size} voxels (z, y, x); {batch} at once."
    by = times(model.encoder.size_divisor)
    return (
        f"Sides are free (multiples of {by} voxels, z, y, x), {batch} at once; it "
        f"learnt from {size} voxels."
    )


def _lines(
    model: Source, kind: str, sides: Sides, told: Mapping[str, Any]
) -> list[str]:
    opset = f", opset {OPSET}" if kind == "onnx" else ""
    lines = [f"{_FILES[kind]}{opset}: {sides_words(model, sides)}", *check_words(told)]
    if model.kind == "classify":
        lines.append("it takes a whole scan in one window; the program is Homolog's")
    return lines


def licence_page(card: Mapping[str, Any]) -> str:
    """The text of LICENSE."""
    return (
        f"Weights: {licence_of(card)}.\n\nPython files beside them: part of Homolog, "
        "Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0\n"
    )


def _page(model: Source, kind: str, sides: Sides, told: Mapping[str, Any]) -> str:
    """README.md."""
    labels = model.kind == "segment"
    lines = [f"# {title_of(model.card)}, as {kind}", ""]
    opset = f" (opset {OPSET})" if kind == "onnx" else ""
    lines += [f"`{_FILES[kind]}`{opset}: `{IMAGE}` (B, C, D, H, W) float32 ->", ""]
    lines += [f"- `{name}`: {_meaning(model)}" for name in model.outputs]
    lines += ["", sides_words(model, sides)]
    if model.channels > 1 and model.model is not None:
        names = model.model.spec.get("channel_names", ())
        lines += ["", f"Channels, in this order: {', '.join(names)}."]
    if labels:
        needs = "onnxruntime" if kind == "onnx" else "torch"
        lines += [
            "", "## Run it", "", "```sh", f"pip install numpy nibabel {needs}",
            f"python {PROGRAM} SCAN.nii.gz --out labels.nii.gz", "```", "",
            f"`{SCANS}` prepares scans as Homolog does and needs NumPy alone; "
            f"`{RECIPE}` holds what it must know. It keeps one number a class and "
            "voxel in memory, which Homolog does not.",
        ]  # fmt: skip
    else:
        lines += ["", "Scans must be prepared as below; Homolog itself does so."]
    lines += ["", "## Compared", "", *check_words(told), "", *card_lines(model.card)]
    return "\n".join([*lines, ""])


def _meaning(model: Source) -> str:
    """What an output holds."""
    if model.kind == "encoder":
        return "a map of features (B, E, d, h, w), fine to coarse"
    if model.kind == "translate":
        return f"the image made, less its centre, by its spread (see {CARD_FILE})"
    names = ", ".join(
        f"{i} {name}" for i, name in enumerate(labels_of(model.card).values())
    )
    if model.kind == "classify":
        several = (model.card.get("task_spec") or {}).get("several")
        how = "sigmoid" if several else "softmax"
        return f"(B, K), chances by {how}: {names}"
    return f"(B, K, D, H, W), the largest is the label: {names}"
