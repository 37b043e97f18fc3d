"""The one door to every form of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.exporting.kinds import CHECKED, DEFAULT, KINDS


def export_model(
    source: Path, out: Path, kind: str = DEFAULT, check: Path | None = None
) -> dict[str, Any]:
    """Write a model as one of ``KINDS``.

    Args:
        source: Run, model folder or weight file.
        out: File or folder; must not exist.
        kind: A key of ``KINDS``.
        check: A scan on which what was written is compared with ``homolog predict``.

    Returns:
        ``file`` (file or folder written), ``kind``, what else was written, and
        ``lines`` for people.

    Raises:
        UnusableInput: ``out`` exists or ends otherwise, there is no model, or the model
            cannot be that kind: the sentence says why.
    """
    if kind not in KINDS:
        raise UnusableInput(f"--as must be one of {', '.join(KINDS)}, got {kind}.")
    suffix = KINDS[kind].suffix
    if suffix and out.suffix != suffix:
        raise UnusableInput(f"--out must end in {suffix}, got {out}.")
    if not suffix and out.suffix in (".onnx", ".pt", ".pth", ".ts", ".safetensors"):
        raise UnusableInput(f"--as {kind} writes a folder, got --out {out}.")
    if out.exists():
        raise UnusableInput(f"{out} exists; choose another --out.")
    if check is not None and kind not in CHECKED:
        raise UnusableInput(f"--check is for kinds that label scans, not for {kind}.")
    result: dict[str, Any]
    if kind == DEFAULT:
        from homolog.model_files import care

        result = care.export_model(source, out)
    elif kind == "bundle":
        from homolog.exporting.bundle import export_bundle

        result = export_bundle(source, out, check)
    elif kind in ("onnx", "torchscript"):
        from homolog.exporting.portable import export_network

        result = export_network(source, out, kind, check)
    elif kind == "nnunet":
        from homolog.exporting.nnunet import export_nnunet

        result = export_nnunet(source, out)
    else:
        from homolog.exporting.hugging_face import export_folder

        result = export_folder(source, out)
    return {"file": str(out), "kind": kind, "lines": [], **result}
