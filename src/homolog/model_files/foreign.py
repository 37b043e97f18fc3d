"""Other people's weight files, read without running anything they say.

A ``.pt`` is a pickle: a program. It is read by torch's restricted unpickler, which
knows tensors and plain containers; a few harmless classes that training scripts leave
in their checkpoints (``argparse.Namespace``, numpy numbers, Lightning's settings) are
replaced by inert stand-ins. Anything else is refused by name. What only looks like a
weight file (a pointer, a web page, a download cut short) is told as what it is.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.errors import UnusableInput
from homolog.words import human_bytes

if TYPE_CHECKING:
    from torch import Tensor

_MOST_NESTING = 4
_SAFE_TORCH = (2, 10)  # its restricted unpickler had holes before
_MOST_PICKLE_BYTES = 64 * 2**20
_FILL = b"\nbytearray\n"
_MOST_ENTRIES = 1_000_000
# Weights that several names share are counted for each.
_MOST_GROWTH = 8
_MOST_SMALL_BYTES = 64 * 2**20
# What reading a broken archive raises.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, EOFError,
    ValueError,
)  # fmt: skip
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
    "torch.torch_version.TorchVersion",
    "functools.partial",
    "datetime.datetime",
    "datetime.date",
    "datetime.timedelta",
)
# Training frameworks: whatever class of theirs a checkpoint names beside its weights
# (settings, schedules, loggers) becomes a stand-in that does nothing.
_FRAMEWORKS = (
    "nnssl", "nnunetv2", "batchgenerators", "batchgeneratorsv2", "monai",
    "pytorch_lightning", "lightning", "lightning_fabric", "lighter", "torchmetrics",
    "omegaconf", "mmengine", "mmcv", "torch.optim",
)  # fmt: skip
# Containers of theirs become plain ones, so that what is in them can be filled in.
_DICTS = ("dict", "Dict", "CfgNode")
_LISTS = ("deque", "List")
_MOST_TOLD = 20_000  # plain values kept beside the tensors
_MOST_TEXT = 20_000  # characters of one of them


@dataclass(frozen=True, eq=False)
class Foreign:
    """What another project's weight file holds.

    Attributes:
        path: The file.
        tensors: Dotted name -> tensor.
        told: Whatever else it says, plain JSON types: plans, settings, versions.
    """

    path: Path
    tensors: dict[str, Tensor]
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Dotted name -> shape."""
        return {name: tuple(value.shape) for name, value in self.tensors.items()}


# Other people's weight files.


def read_foreign(path: Path) -> Foreign:
    """Every tensor of a weight file under its dotted name, nests included.

    ``{"state_dict": {"module.conv.weight": t}}`` becomes
    ``{"state_dict.module.conv.weight": t}``.

    Args:
        path: A ``.safetensors`` file, or one written by ``torch.save``.

    Raises:
        UnusableInput: Not such a file, damaged, holds no tensors, or wants to run code.
    """
    check_kind(path)
    from torch import Tensor

    content: Any
    if _is_safetensors(path):
        content, told = _read_safetensors(path)
    else:
        _check_archive(path)
        _check_program(path)
        content = _read_pickle(path)
        told = _plain_values(content)
    found: dict[str, Tensor] = {}
    for looked, (names, value) in enumerate(_entries(content, ())):
        if looked > _MOST_ENTRIES:
            raise UnusableInput(f"{path} holds more than {_MOST_ENTRIES} entries.")
        if isinstance(value, Tensor) and not (value.is_sparse or value.is_quantized):
            found[".".join(names)] = value.detach()
    if not found:
        raise UnusableInput(f"expected weights in {path}, found no tensor.")
    _check_size(found, path)
    return Foreign(path, found, told)


# What only looks like a weight file.
_LFS = b"version https://git-lfs.github.com/spec/"
_SMALL = 4096
_OTHERS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"%PDF", "a PDF"),
    (b"GGUF", "a GGUF file"),
)


def check_kind(path: Path) -> None:
    """Say of a file that cannot hold weights what it is; torch is not imported.

    Raises:
        UnusableInput: Not there, a pointer of git-LFS or git-annex, a web page, a
            message of a server, an archive, or a download that was cut short.
    """
    if not path.is_file():
        raise UnusableInput(_absent(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_SMALL)
    whats = _pretender(start, size)
    if whats:
        raise UnusableInput(f"expected weights, but {path} is {whats}.")
    if _is_safetensors(path):
        _check_whole(path, start, size)
    elif start[:4] == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        raise UnusableInput(
            f"{path} is damaged or something else: an archive of torch.save whose end "
            f"is missing after {human_bytes(size)}; the download was cut short."
        )


def _absent(path: Path) -> str:
    if path.is_dir():
        return f"expected a weight file, {path} is a folder."
    if path.is_symlink():
        target = path.readlink().as_posix()
        if ".git/annex" in target:
            return (
                f"expected weights, but {path} is a git-annex link whose content is "
                "not here: fetch it with git annex get."
            )
        return f"expected weights, but {path} is a link to {target}: there is none."
    return f"expected a weight file, got {path}: there is none."


def _pretender(start: bytes, size: int) -> str:
    """What a file is by its first bytes; empty where it may hold weights."""
    if start.startswith(_LFS):
        told = re.search(rb"\nsize (\d{1,20})", start)
        whole = f" of {human_bytes(int(told[1]))}" if told else ""
        return f"a git-LFS pointer to a file{whole}: fetch it with git lfs pull"
    if size < _SMALL and b"annex/objects/" in start:
        return "a git-annex pointer: fetch its content with git annex get"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return (
            "a web page: the address was that of the page about the file, or wants a "
            "log-in. Download the file itself"
        )
    if text.startswith(b"{") and size < (1 << 20) and b"\0" not in start:
        return "JSON text, a plan, an index or a server's answer"
    return next((name for magic, name in _OTHERS if start.startswith(magic)), "")


def _is_safetensors(path: Path) -> bool:
    """By its ending, or, under another one, by its first bytes: a length and JSON."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(10)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 10 and start[8:] == b'{"' and length < path.stat().st_size


def _check_whole(path: Path, start: bytes, size: int) -> None:
    """Refuse a safetensors file shorter than its header says."""
    head = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
    if 2 <= head < 100_000_000 and start[8:9] == b"{":
        ends = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,20})\s*\]')
        with path.open("rb") as file:
            file.seek(8)
            found = [int(n) for n in ends.findall(file.read(head))]
        whole = 8 + head + max(found, default=0)
        if size < whole:
            raise UnusableInput(
                f"{path} is damaged or something else: {human_bytes(size)} of "
                f"{human_bytes(whole)} are there; the download was cut short."
            )


def _plain_values(content: Any) -> dict[str, Any]:
    """All that is neither tensor nor object, as JSON types; bounded."""
    left = [_MOST_TOLD]

    def plain(value: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > 10:
            return None
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return value[:_MOST_TEXT]
        if isinstance(value, Mapping):
            inner = {str(k): plain(v, depth + 1) for k, v in value.items()}
            return {k: v for k, v in inner.items() if v is not _NOTHING}
        if isinstance(value, list | tuple):
            return [
                v for v in (plain(v, depth + 1) for v in value) if v is not _NOTHING
            ]
        return _NOTHING

    found = plain(content, 0) if isinstance(content, Mapping) else {}
    return {k: v for k, v in (found or {}).items() if v not in ({}, [])}


_NOTHING = object()


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


class _AsDict:
    """Makes a plain dictionary, whatever it is constructed with."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _AsList:
    """Makes a plain list, whatever it is constructed with."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


def _stand_in(name: str) -> tuple[Any, str]:
    """What stands for a class of a checkpoint: it does nothing, or holds things."""
    last = name.rpartition(".")[2]
    kind: type = _Inert
    if last.endswith(_DICTS):
        kind = _AsDict
    elif last.endswith(_LISTS):
        kind = _AsList
    return type(f"Inert_{last}", (kind,), {}), name


def _check_size(found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that take more memory than their file accounts for."""
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            loaded = {name: file.get_tensor(name) for name in file.keys()}
            told: dict[str, Any] = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError,
            OverflowError, MemoryError) as error:  # fmt: skip
        raise UnusableInput(
            f"expected a safetensors file, {path} is damaged or something else "
            f"({error})."
        ) from error
    return loaded, told


def _check_archive(path: Path) -> None:
    """Refuse zip tricks before torch looks: bombs, odd paths, a second pickle."""
    if not zipfile.is_zipfile(path):
        return  # the older format, a bare pickle; the unpickler below judges it
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _BROKEN as error:
        raise UnusableInput(f"{path} is a damaged archive ({error}).") from error
    pickles = [e for e in entries if e.filename.endswith("data.pkl")]
    names = [e.filename for e in entries]
    if any(n.endswith("/constants.pkl") for n in names):
        raise UnusableInput(
            f"{path} is a TorchScript program, not weights; ask for the state dict."
        )
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
    """Refuse a pickle that wants bytes by their number alone.

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
        except _BROKEN as error:
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
    import torch

    if _torch_version() < _SAFE_TORCH:
        raise UnusableInput(
            f"{path} is a pickle; reading one safely needs torch "
            f"{'.'.join(map(str, _SAFE_TORCH))} or newer (CVE-2026-24747), this is "
            f"{torch.__version__}. Ask for the weights as safetensors."
        )
    stand_ins: list[Any] = [
        _stand_in(name) for name in (*_INERT, *_of_frameworks(path))
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
            RecursionError, OverflowError, struct.error) as error:  # fmt: skip
        raise _damaged(path, error) from error


def _of_frameworks(path: Path) -> list[str]:
    """Classes of training frameworks that a checkpoint names; nothing is loaded."""
    import torch

    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - of the older format, or damaged: judged below
        return []
    return [
        name
        for name in named
        if f"{name}.".startswith(tuple(f"{known}." for known in _FRAMEWORKS))
        and name not in _INERT
    ]


def _damaged(path: Path, error: BaseException) -> UnusableInput:
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return UnusableInput(
        f"expected a file of torch.save, {path} is damaged or something else "
        f"({first or type(error).__name__})."
    )


def _torch_version() -> tuple[int, ...]:
    import torch

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
