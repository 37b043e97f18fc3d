"""Other people's weight files, read without running anything they say.

A ``.pt`` is a pickle: a program. It is read by torch's restricted unpickler, which
knows tensors and plain containers; a few harmless classes that training scripts leave
in their checkpoints (``argparse.Namespace``, numpy numbers, Lightning's settings) are
replaced by inert stand-ins. Anything else is refused by name.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from homolog.errors import UnusableInput

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".model")
_MOST_NESTING = 4
_SAFE_TORCH = (2, 10)  # its restricted unpickler had holes before
_MOST_PICKLE_BYTES = 64 * 2**20
_FILL = b"\nbytearray\n"
_MOST_ENTRIES = 1_000_000
# Weights that several names share are counted for each.
_MOST_GROWTH = 8
_MOST_SMALL_BYTES = 64 * 2**20

# Names that training scripts are known to leave behind; none does anything here.
_INERT = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "collections.defaultdict",
    "collections.deque",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
)


class _Inert:
    """Takes any construction and any state, keeps nothing, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""

    def __hash__(self) -> int:
        return id(self)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file under its dotted name, nests included.

    ``{"state_dict": {"module.conv.weight": t}}`` becomes
    ``{"state_dict.module.conv.weight": t}``; other values are dropped.

    Args:
        path: A ``.safetensors`` file, or one written by ``torch.save``.

    Raises:
        UnusableInput: Not such a file, damaged, holds no tensors, or wants to run code.
    """
    if not path.is_file():
        raise UnusableInput(f"expected a weight file, got {path}: there is none.")
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    else:
        _check_archive(path)
        _check_program(path)
        content = _read_pickle(path)
    found: dict[str, Tensor] = {}
    for looked, (names, value) in enumerate(_entries(content, ())):
        if looked > _MOST_ENTRIES:
            raise UnusableInput(f"{path} holds more than {_MOST_ENTRIES} entries.")
        if isinstance(value, Tensor) and not (value.is_sparse or value.is_quantized):
            found[".".join(names)] = value.detach()
    if not found:
        raise UnusableInput(f"expected weights in {path}, found no tensor.")
    _check_size(found, path)
    return found


def _check_size(found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that take more memory than their file could tell of."""
    size = path.stat().st_size
    total = sum(t.numel() * t.element_size() for t in found.values())
    # The larger of what tensors show (a single number may be shown a billion times)
    # and what they hold (one number of a billion may be shown).
    stored = {t.untyped_storage().data_ptr(): t for t in found.values()}
    held = sum(t.untyped_storage().nbytes() for t in stored.values())
    if max(total, held) > _MOST_GROWTH * size + _MOST_SMALL_BYTES:
        raise UnusableInput(
            f"{path} would unpack to {max(total, held)} bytes of weights from {size}: "
            "not a file training writes."
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnusableInput(
            f"expected a safetensors file, {path} is damaged or something else "
            f"({error})."
        ) from error
    return loaded


def _check_archive(path: Path) -> None:
    """Refuse zip tricks before torch looks: bombs, odd paths, a second pickle."""
    if not zipfile.is_zipfile(path):
        return  # the older format, a bare pickle; the unpickler below judges it
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise UnusableInput(f"{path} is a damaged archive ({error}).") from error
    pickles = [e for e in entries if e.filename.endswith("data.pkl")]
    names = [e.filename for e in entries]
    odd = [
        n
        for n in names
        if n.startswith(("/", "\\")) or ".." in n.split("/") or ":" in n
    ]
    if odd or len(set(names)) != len(names):
        raise UnusableInput(
            f"{path} is not a plain torch file: it holds the entry "
            f"{(odd or sorted(names))[0]!r} twice or outside its folder."
        )
    if len(pickles) != 1 or pickles[0].file_size > _MOST_PICKLE_BYTES:
        raise UnusableInput(
            f"{path} is not a plain torch file: expected one small data.pkl, found "
            f"{[(e.filename, e.file_size) for e in pickles]}."
        )
    unpacked = sum(e.file_size for e in entries)
    if unpacked > 2 * path.stat().st_size + 2**20:
        raise UnusableInput(
            f"{path} would unpack to {unpacked} bytes from {path.stat().st_size}: "
            "not a file torch writes."
        )


def _check_program(path: Path) -> None:
    """Refuse a pickle that asks for bytes by their number alone.

    torch's unpickler makes a bytearray of any length; weights hold none.
    """
    with path.open("rb") as file:
        packed = file.read(4) == b"PK\x03\x04"  # as torch decides
    if packed:
        try:
            with zipfile.ZipFile(path) as archive:
                wants = any(
                    _FILL in archive.read(e)
                    for e in archive.infolist()
                    if e.filename.endswith("data.pkl")
                )
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError,
                NotImplementedError, EOFError) as error:  # fmt: skip
            raise _damaged(path, error) from error
    else:
        wants = _holds(path, _FILL)
    if wants:
        raise UnusableInput(
            f"{path} was refused: it wants memory by a number, which no weights do. "
            "Ask for the weights as safetensors, or save the state dict alone."
        )


def _holds(path: Path, words: bytes) -> bool:
    """Whether a file holds some bytes anywhere."""
    tail = b""
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            if words in tail + piece:
                return True
            tail = piece[-len(words) :]
    return False


def _read_pickle(path: Path) -> Any:
    if _torch_version() < _SAFE_TORCH:
        raise UnusableInput(
            f"{path} is a pickle; reading one safely needs torch "
            f"{'.'.join(map(str, _SAFE_TORCH))} or newer (CVE-2026-24747), this is "
            f"{torch.__version__}. Ask for the weights as safetensors."
        )
    stand_ins: list[Any] = [
        (type(f"Inert_{name.rpartition('.')[2]}", (_Inert,), {}), name)
        for name in _INERT
    ]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # other pickle protocols: judged all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _wanted_name(str(error))
        raise UnusableInput(
            f"{path} was refused: it wants {wanted}, which could run code. Ask for the "
            "weights as safetensors, or save the state dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, KeyError,
            AttributeError, AssertionError, IndexError, MemoryError,
            RecursionError, OverflowError) as error:  # fmt: skip
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> UnusableInput:
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return UnusableInput(
        f"expected a file of torch.save, {path} is damaged or something else "
        f"({first or type(error).__name__})."
    )


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _wanted_name(text: str) -> str:
    """The global that torch's unpickler names in its message."""
    for mark in ("Unsupported global: GLOBAL ", "unsupported GLOBAL "):
        if mark in text:
            return f"{text.split(mark)[1].split()[0]!r}"
    return "more than tensors and plain containers"


def _entries(
    value: Any, names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything in nested dictionaries, with its names from the outside in."""
    if isinstance(value, Mapping) and len(names) < _MOST_NESTING:
        for name, inner in value.items():
            if isinstance(name, str):
                yield from _entries(inner, (*names, name))
            else:
                yield (), None
    else:
        yield names, value
