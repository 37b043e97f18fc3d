"""As what a model can be handed out; no heavy library, for the window reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A form.

    Attributes:
        title: For people.
        suffix: Of the file; "" for a folder.
    """

    title: str
    suffix: str = ""


DEFAULT = "safetensors"
KINDS: Mapping[str, Kind] = {
    "safetensors": Kind("Encoder weights for other programs", ".safetensors"),
    "bundle": Kind("MONAI bundle that labels scans by itself"),
    "onnx": Kind("ONNX network, for ONNX Runtime and others"),
    "torchscript": Kind("TorchScript network, for PyTorch alone"),
    "nnunet": Kind("nnU-Net checkpoint to fine-tune from"),
    "huggingface": Kind("Card, config and weights for the Hugging Face hub"),
}
CHECKED = ("bundle", "onnx", "torchscript")  # kinds of a network that can be compared
NNUNETS = "resenc"
_NO_NETWORK = {
    "detect": "its boxes are put together from the answers of many windows by "
    "Homolog's own code, which no single network file holds",
    "few_voxels": "it is a head on features and grey values, which no single network "
    "file holds",
}
_NO_BUNDLE = {
    "encoder": "a bundle labels scans, and an encoder alone labels none: fine-tune "
    "it (homolog finetune segment STORE --encoder RUN), or take --as torchscript",
    "classify": "a classifier's view of a whole scan is cut by Homolog's own code; "
    "take --as torchscript or onnx for the network",
    "translate": "the values it makes are put into units by Homolog's own code; take "
    "--as torchscript or onnx for the network",
}


def why_not(card: Mapping[str, Any], kind: str) -> str:
    """Why a model cannot be written as ``kind``; empty where it can.

    Args:
        card: ``model.json``.
        kind: A key of ``KINDS``.
    """
    told = str(card.get("kind") or "encoder")
    network = str((card.get("backbone") or {}).get("name", ""))
    if kind in CHECKED and told in _NO_NETWORK:
        return _NO_NETWORK[told]
    if kind == "bundle" and told != "segment":
        return _NO_BUNDLE.get(told, _NO_BUNDLE["encoder"])
    if kind == "nnunet" and network != NNUNETS:
        return (
            f"it is a {network or told}; nnU-Net trains its own network, so only an "
            f"encoder of the backbone {NNUNETS} can start it"
        )
    return ""
