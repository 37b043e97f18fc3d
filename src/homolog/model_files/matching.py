"""From the names of a weight file to the names of a network, with an account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from homolog.backbones._base import Backbone, adapt_state, renamed_state

_DEPTH_OF_PREFIX = 6
# Where several networks of one file fit equally, the smoother one is meant.
_PREFERRED = ("teacher", "ema", "student", "state_dict", "model")


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
            count = len(self.left_over)
            tensors = "1 tensor" if count == 1 else f"{count} tensors"
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
