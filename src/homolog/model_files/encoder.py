"""An encoder from a run, a model folder or another project's weight file.

Other people's weight files are read without running anything they say. A ``.pt`` is a
pickle: a program. It is read by torch's restricted unpickler, which knows tensors and
plain containers; a few harmless classes that training scripts leave in their
checkpoints (``argparse.Namespace``, numpy numbers, Lightning's settings) are replaced
by inert stand-ins. Anything else is refused by name.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from homolog.backbones import build
from homolog.backbones.base import Backbone, adapt_state, renamed_state
from homolog.config import config_hash, to_dict
from homolog.errors import UnusableInput
from homolog.model_files.card import CARD, read_card
from homolog.model_files.folder import find_model, load_model
from homolog.words import counted

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

_DEPTH_OF_PREFIX = 6
# Where several networks of one file fit equally, the smoother one is meant.
_PREFERRED = ("teacher", "ema", "student", "state_dict", "model")
LEAST_MATCHED = 0.9


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """An encoder with its weights.

    Attributes:
        backbone: In evaluation mode, on the CPU.
        card: ``model.json``; of a foreign file: ``kind``, ``backbone``, ``source``.
        report: What matched.
        encoder_id: Hash of weights and configuration, 16 hex digits.
        folder: The model folder, None for a foreign file.
    """

    backbone: Backbone
    card: dict[str, Any]
    report: LoadReport
    encoder_id: str
    folder: Path | None = None


def load_encoder(
    source: str | Path,
    backbone_hint: str | Mapping[str, Any] | None = None,
    in_channels: int | None = None,
    least_matched: float = LEAST_MATCHED,
    *,
    allow_dropped: bool = False,
) -> LoadedEncoder:
    """An encoder from our own folders or from a foreign weight file.

    Args:
        source: RUN, model folder, ``.safetensors`` or ``.pt`` file.
        backbone_hint: For foreign files: a backbone's name, or a mapping with ``name``
            and ``config``. Ours know it.
        in_channels: Channels of the images it will see; the first layer is adapted.
        least_matched: Share of the encoder's parameters that must be found.
        allow_dropped: Go on where the file's encoder is larger than the network, or
            distinguishes image channels that the network has not.

    Raises:
        UnusableInput: Nothing there, damaged, unsafe, or too little of it matches; part
            of it would be dropped; or weights that are no numbers.
    """
    path = Path(source)
    if _is_foreign(path):
        folder: Path | None = None
        card: dict[str, Any] = {"kind": "encoder", "source": str(path)}
        state, chosen = read_foreign(path), _hinted(backbone_hint, path)
    else:
        model = load_model(path)
        folder, card, state = model.folder, model.card, model.state
        chosen = card.get("backbone") or _hinted(backbone_hint, path)
    settings: dict[str, Any] = dict(chosen.get("config") or {})
    if in_channels is not None:
        settings["in_channels"] = in_channels
    backbone = build(str(chosen["name"]), settings)
    card = {**card, "backbone": {"name": chosen["name"], "config": _settings(backbone)}}
    report = fill(backbone, state, str(path))
    if report.share < least_matched:
        raise UnusableInput(
            f"only {report.share:.1%} of the encoder {chosen['name']!r} was found in "
            f"{path}, at least {least_matched:.0%} is needed.\n"
            + "\n".join(report.lines()[1:])
        )
    if report.nonfinite:
        raise UnusableInput(
            f"{path} holds NaN or infinite weights in {len(report.nonfinite)} tensors "
            f"(first {report.nonfinite[0]}); nothing can be computed with them."
        )
    if report.dropped and not allow_dropped:
        raise UnusableInput(
            f"{path} would lose {report.dropped}: the encoder {chosen['name']!r} with "
            "these settings is another one. Give the settings of its own (--set); or "
            "take what fits by homolog models import --allow-dropped.\n"
            + "\n".join(report.lines()[1:])
        )
    backbone.eval()
    return LoadedEncoder(backbone, card, report, encoder_id(backbone), folder)


def own_backbone(source: str | Path) -> dict[str, Any] | None:
    """``name`` and ``config`` of the network in one of our own folders.

    Args:
        source: As for ``load_encoder``.

    Returns:
        None for another project's weight file, which does not say.

    Raises:
        UnusableInput: Nothing there, or damaged.
    """
    path = Path(source)
    if _is_foreign(path):
        return None
    told = read_card(find_model(path)).get("backbone")
    return None if not told else {"config": {}, **told}


def _is_foreign(path: Path) -> bool:
    """A weight file that is not of a model folder."""
    return path.is_file() and not (path.parent / CARD).is_file()


def encoder_id(backbone: Backbone) -> str:
    """16 hex digits that change with any weight or setting of an encoder."""
    digest = hashlib.sha256(config_hash(_settings(backbone)).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings(backbone: Backbone) -> dict[str, Any]:
    return to_dict(backbone.config)


def _hinted(hint: str | Mapping[str, Any] | None, path: Path) -> dict[str, Any]:
    if hint is None:
        raise UnusableInput(
            f"{path} does not say which network it is: name the backbone (--backbone)."
        )
    return {"name": hint} if isinstance(hint, str) else dict(hint)


# From the names of a weight file to the names of a network, with an account.


@dataclass(frozen=True)
class LoadReport:
    """What of an encoder was found in a file.

    Attributes:
        source: The file.
        matched: Parameters and buffers that were loaded.
        missing: Of the encoder, not in the file; they keep their random start.
        unexpected: In the file, not of the encoder (heads, decoders, other networks).
        misshaped: Name, shape expected, shape found.
        share: Share of the encoder's parameters (counted in numbers) that matched.
        prefix: What was cut off the file's names.
        left_over: Those of ``unexpected`` that stand among the encoder's own parts:
            the file's network is larger, and what it learnt there is lost.
        summed: First layers whose image channels do not fit, and were brought together:
            name, shape expected, shape found.
        nonfinite: Of those matched, with NaN or infinite values.
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    share: float
    prefix: str = ""
    left_over: tuple[str, ...] = ()
    summed: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    nonfinite: tuple[str, ...] = ()

    @property
    def dropped(self) -> str:
        """What the file's encoder knows and this network does not; empty for nothing.

        Half a sentence. A colour picture's three channels into one of grey are no loss:
        the sum sees a grey picture as the three saw it.
        """
        parts = []
        if self.left_over:
            tensors = counted(len(self.left_over), "tensor")
            text = f"{tensors} of the encoder (first {self.left_over[0]})"
            if all(".running_" in name for name in self.left_over):
                text += ", all running statistics of batch norm (norm=batch keeps them)"
            parts.append(text)
        if self.misshaped:
            name, wanted, found = self.misshaped[0]
            parts.append(
                f"{len(self.misshaped)} of other shapes (first {name}, {list(found)} "
                f"instead of {list(wanted)})"
            )
        for name, wanted, found in self.summed:
            if (found[1], wanted[1], len(found)) == (3, 1, 4):
                continue
            parts.append(
                f"what tells its {found[1]} image channels apart ({name}, summed into "
                f"{wanted[1]})"
            )
        return ", ".join(parts)

    def lines(self) -> list[str]:
        """For people: the counts, and the first names of each kind."""
        found = [
            f"{self.source}: {self.share:.1%} of the encoder matched"
            + (f" (names below {self.prefix!r})" if self.prefix else "")
        ]
        shapes = [f"{n} {list(a)} <- {list(b)}" for n, a, b in self.misshaped]
        for kind, names in (
            ("matched", self.matched),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", shapes),
            ("left over", self.left_over),
            ("summed", [f"{n} {list(a)} <- {list(b)}" for n, a, b in self.summed]),
        ):
            if not names and kind in ("left over", "summed"):
                continue
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            found.append(f"  {kind:<11}{len(names):>5}  {some}".rstrip())
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON types; long lists are cut after 20 names."""
        return {
            "source": self.source,
            "share": round(self.share, 6),
            "prefix": self.prefix,
            "matched": len(self.matched),
            "missing": list(self.missing[:20]),
            "unexpected": list(self.unexpected[:20]),
            "misshaped": [[n, list(a), list(b)] for n, a, b in self.misshaped[:20]],
            "left_over": list(self.left_over[:20]),
            "summed": [[n, list(a), list(b)] for n, a, b in self.summed],
        }


def fill(
    backbone: Backbone, state: Mapping[str, Tensor], source: str = "weights"
) -> LoadReport:
    """Load what fits into a backbone; says what did not.

    The file's names may stand below any prefix of up to six parts (``module.``,
    ``state_dict.swinViT.``, ``student.backbone.``, ...): the best fitting one is used.
    """
    wanted = backbone.state_dict()
    best: tuple[float, str, dict[str, Tensor]] = (-1.0, "", {})
    given: dict[str, Tensor] = {}
    for prefix in _prefixes(state):
        inside = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
        }
        adapted = adapt_state(inside, backbone)
        share = _share(backbone, adapted)
        if share > best[0] + 1e-9:
            best, given = (share, prefix, adapted), inside
    share, prefix, found = best
    matched = {
        k: v for k, v in found.items() if k in wanted and v.shape == wanted[k].shape
    }
    backbone.load_state_dict(matched, strict=False)
    odd = [
        (k, tuple(wanted[k].shape), tuple(found[k].shape))
        for k in found
        if k in wanted and k not in matched
    ]
    unexpected = tuple(k for k in found if k not in wanted)
    own = {_part(name) for name in wanted}
    return LoadReport(
        source=source,
        matched=tuple(matched),
        missing=tuple(k for k in wanted if k not in found),
        unexpected=unexpected,
        misshaped=tuple(odd),
        share=max(share, 0.0),
        prefix=prefix,
        left_over=tuple(
            k for k in unexpected if _part(k) in own and found[k].is_floating_point()
        ),
        summed=_summed(renamed_state(given, backbone), matched),
        nonfinite=tuple(
            k
            for k, v in matched.items()
            if v.is_floating_point() and not bool(v.isfinite().all())
        ),
    )


def _part(name: str) -> str:
    """The part of a network a name stands in: ``layers5.0.norm`` -> ``layers``."""
    return name.partition(".")[0].rstrip("0123456789")


def _summed(
    given: Mapping[str, Tensor], matched: Mapping[str, Tensor]
) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
    """First layers that had several image channels, and other ones than wanted."""
    return tuple(
        (name, tuple(value.shape), tuple(given[name].shape))
        for name, value in matched.items()
        if value.shape != given[name].shape and given[name].shape[1] > 1
    )


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """Every beginning of a name, the likely ones first."""
    found = {""}
    for name in state:
        parts = name.split(".")[:-1][:_DEPTH_OF_PREFIX]
        found |= {".".join(parts[: i + 1]) + "." for i in range(len(parts))}

    def order(prefix: str) -> tuple[int, int, str]:
        words = prefix.split(".")
        known = [i for i, w in enumerate(_PREFERRED) if w in words]
        return (min(known, default=9) if prefix else -1, len(words), prefix)

    return sorted(found, key=order)


def _share(backbone: Backbone, state: Mapping[str, Tensor]) -> float:
    """Share of the backbone's numbers found in the right shape."""
    sizes = backbone.state_dict()
    total = sum(v.numel() for v in sizes.values())
    found = sum(
        v.numel() for k, v in sizes.items() if k in state and state[k].shape == v.shape
    )
    return found / total if total else 0.0


# Other people's weight files.


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
