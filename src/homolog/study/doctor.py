"""Is this machine fit for the engine? Each check is made, not assumed."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.events import Job

_NEEDED = (
    "torch", "monai", "numpy", "scipy", "SimpleITK", "safetensors", "blosc2",
    "scikit-learn", "napari-plugin-engine", "click", "rich",
)  # fmt: skip
_FOR_THE_WINDOW = ("napari", "magicgui", "qtpy", "superqt", "pyqtgraph")
_LITTLE_DISK = 5 * 2**30
_LITTLE_MEMORY = 4 * 2**30


def examine_stores(
    stores: Sequence[Path], *, repair: bool = False
) -> Job[dict[str, Any]]:
    """Compare every file of stores with its checksum; mend what can be.

    Args:
        stores: Folders.
        repair: Make damaged cases anew from their scans, add missing checksums.

    Returns:
        ``stores`` (fields of ``StoreReport``), ``problems``, ``lines`` as text,
        ``stopped``.

    Raises:
        UnusableInput: No store there, or one that is being written.
    """
    from homolog.data.store_care import care_for

    reports, lines, problems = [], [], []
    for store in stores:
        try:
            report = yield from care_for(store, repair=repair)
        except UnusableInput as error:
            if len(stores) == 1:
                raise
            problems.append(str(error))
            lines.append(f"PROBLEM: {error}")
            continue
        reports.append(dataclasses.asdict(report))
        many = f"{report.cases} case{'s' if report.cases != 1 else ''}"
        lines.append(f"{store}: {many}, {report.bytes / 1e6:.1f} MB read")
        lines += [
            f"  damaged: {d['case']}, {d['file']}: {d['what']}" for d in report.damaged
        ]
        if report.mended:
            lines.append(f"  made anew from their scans: {', '.join(report.mended)}")
        if report.sealed:
            lines.append(f"  {len(report.sealed)} were given checksums")
        lines += [f"  hint: {text}" for text in report.hints]
        lines += [f"  PROBLEM: {text}" for text in report.problems]
        if report.damaged and report.problems and not repair:
            lines.append(f"  mend it with: homolog doctor {store} --repair")
        if not report.problems:
            lines.append("  all is well" if not report.damaged else "  all is mended")
        problems += [f"{store}: {text}" for text in report.problems]
        if report.stopped:
            break
    stopped = any(report["stopped"] for report in reports)
    return {
        "stores": reports, "problems": problems, "lines": lines, "stopped": stopped,
    }  # fmt: skip


def examine() -> dict[str, Any]:
    """Versions, devices, precision, threads, disk, memory and display.

    A training step is run on every device, and a file is written. Libraries that are
    missing are told, not needed.

    Returns:
        What was found, by name; ``problems`` and ``advice``, one sentence each; and
        ``lines``, all of it as text.
    """
    found: dict[str, Any] = {}
    problems: list[str] = []
    advice: list[str] = []
    for check in (_python, _libraries, _device, _disk, _memory, _display):
        check(found, problems, advice)
    lines = [f"{key}: {value}" for key, value in found.items()]
    lines += [f"hint: {text}" for text in advice]
    lines += [f"PROBLEM: {text}" for text in problems] or ["all is well"]
    return {**found, "problems": problems, "advice": advice, "lines": lines}


def _python(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    found["homolog"] = metadata.version("napari-homolog")
    found["python"] = f"{platform.python_version()} ({sys.executable})"
    found["system"] = platform.platform()


def _libraries(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    for name in _NEEDED + _FOR_THE_WINDOW:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in _NEEDED:
                problems.append(f"{name} is missing: pip install napari-homolog")
            elif name == "napari":
                advice.append(
                    "no napari: the terminal works, the window needs "
                    'pip install "napari-homolog[gui]"'
                )


def _device(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be loaded: {error}")
        return
    from homolog.distributed import usable_gpus
    from homolog.training.precision import cpu_has_bf16

    found["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found["instructions"] = f"{torch.backends.cpu.get_cpu_capability()}" + (
        ", native bf16" if cpu_has_bf16() else ", no native bf16"
    )
    devices = ["cpu", *(f"cuda:{i}" for i in range(usable_gpus()))]
    if len(devices) == 1:
        advice.append("no CUDA device: training runs on the CPU (recipe cpu).")
    for device in devices:
        found[f"device {device}"] = _describe(device)
        try:
            _one_step(device)
        except (RuntimeError, ValueError) as error:
            problems.append(f"a training step on {device} failed: {error}")


def _describe(device: str) -> str:
    import torch

    from homolog.training.precision import gpu_precision

    if device == "cpu":
        return platform.processor() or platform.machine()
    told = torch.cuda.get_device_properties(device)
    narrow = gpu_precision(torch.device(device))
    return f"{told.name}, {told.total_memory / 2**30:.0f} GiB, {narrow}"


def _one_step(device: str) -> None:
    """A 3D convolution forward and backward and one fused update; must be finite."""
    import torch

    layer = torch.nn.Conv3d(1, 4, 3, padding=1).to(device)
    optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
    image = torch.ones(1, 1, 8, 8, 8, device=device)
    layer(image).square().mean().backward()
    optimiser.step()
    if not all(bool(p.isfinite().all()) for p in layer.parameters()):
        raise ValueError("the weights are no longer finite")


def _disk(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found["disk"] = f"{free / 2**30:.1f} GiB free in {here}"
    if free < _LITTLE_DISK:
        advice.append(f"only {free / 2**30:.1f} GiB of disk are free in {here}.")
    try:
        with tempfile.NamedTemporaryFile(dir=here) as file:
            file.write(b"homolog")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        advice.append(f"{here} cannot be written ({error.strerror}).")


def _memory(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return
    found["memory"] = f"{size / 2**30:.1f} GiB"
    if size < _LITTLE_MEMORY:
        advice.append("less than 4 GiB of memory: take small crops and batches.")


def _display(found: dict[str, Any], problems: list[str], advice: list[str]) -> None:
    if sys.platform.startswith("linux"):
        names = ("WAYLAND_DISPLAY", "DISPLAY")
        shown = next((os.environ[n] for n in names if os.environ.get(n)), None)
        found["display"] = shown or "none"
        if shown is None:
            advice.append("no display: the terminal works, the window does not.")
    else:
        found["display"] = sys.platform
