"""Whose network a weight file holds: found from names and shapes alone.

Each layout is a way of naming the tensors of a network that published files come in.
One is recognised by the name of a tensor that no other network has; what stands before
that name is the prefix (``state_dict.module.backbone.``), and the settings of the
network are read off the shapes. What no shape tells (attention heads, say) is taken as
its projects publish it, and said.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from homolog.errors import UnusableInput
from homolog.words import listed

if TYPE_CHECKING:
    from torch import Tensor

Shape: TypeAlias = tuple[int, ...]

# Where a file holds a network several times over, the smoother one is meant.
PREFERRED = (
    "teacher", "ema", "encoder_q", "online_encoder", "student", "state_dict", "model",
)  # fmt: skip
# Copies that training keeps beside the weights.
_NOT_WEIGHTS = ("optim", "optimizer", "scheduler", "grad_scaler", "amp", "queue")
_SEEN = 6  # names shown of a file that nothing recognised
_WIDEST_WINDOW = 16


class _OtherNetwork(Exception):
    """The layout fits, but the network is one that cannot be built; says why."""


@dataclass(frozen=True)
class Part:
    """The tensors below a prefix.

    Attributes:
        shapes: Name without the prefix -> shape.
        whole: All names of the file -> shape.
        told: What the file says beside its tensors.
    """

    shapes: Mapping[str, Shape]
    whole: Mapping[str, Shape]
    told: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> Shape:
        try:
            return self.shapes[name]
        except KeyError:
            raise _OtherNetwork(f"it has no {name}") from None

    def has(self, beginning: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(beginning) for name in self.shapes)

    def count(self, pattern: str) -> int:
        """How many numbers, from 0 on, make ``pattern % number`` a name of the part."""
        return next(i for i in itertools.count() if pattern % i not in self.shapes)


Settings: TypeAlias = dict[str, Any]
Read: TypeAlias = Callable[[Part], tuple[Settings, list[str]]]


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of a network.

    Attributes:
        key: Its name in cards.
        title: The network.
        published: What is known to be published in it.
        anchor: The tensor that it is recognised by.
        backbone: The network here; empty: none can hold it.
        read: Settings of that network, and what had to be assumed.
        fits: Whether a part with the anchor is of this layout.
        why_not: Where there is no network for it: a sentence without its end.
        own: The tensors below the prefix as the network's own, given its settings.
    """

    key: str
    title: str
    published: tuple[str, ...]
    anchor: str
    backbone: str
    read: Read
    fits: Callable[[Part], bool] = lambda part: True
    why_not: str = ""
    own: Callable[[dict[str, Tensor], Settings], dict[str, Tensor]] = (
        lambda state, settings: state
    )


@dataclass(frozen=True)
class Recognised:
    """What a file was recognised as.

    Attributes:
        layout: The layout.
        prefix: What stands before the network's names.
        settings: Of the network.
        notes: What had to be assumed, in sentences.
    """

    layout: Layout
    prefix: str
    settings: Settings
    notes: tuple[str, ...] = ()

    def inside(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors below the prefix, as the network takes them."""
        below = {
            name.removeprefix(self.prefix): value
            for name, value in state.items()
            if name.startswith(self.prefix)
        }
        return self.layout.own(below, self.settings)


def recognise(
    shapes: Mapping[str, Shape],
    told: Mapping[str, Any] | None = None,
    *,
    backbone: str | None = None,
    below: str | None = None,
    source: str = "the file",
) -> Recognised:
    """The one layout that fits a file.

    Args:
        shapes: Name -> shape of every tensor.
        told: What the file says beside them.
        backbone: Only layouts of this network.
        below: Only names below this prefix.
        source: For the error.

    Raises:
        UnusableInput: None fits, or several do equally well, or the one that does is of
            a network that cannot be built; says what was seen and what is known.
    """
    found, reasons = candidates(shapes, told or {}, backbone=backbone, below=below)
    if not found:
        why = "; ".join(dict.fromkeys(reasons))
        raise UnusableInput(
            f"{source} holds {why}.\n{seen(shapes)}"
            if why
            else f"{source} is in no layout that is known: name the backbone "
            f"(--backbone) if it is one of ours.\n{seen(shapes)}\n{known()}"
        )
    if len(found) > 1:
        choices = listed(
            [f"{one.layout.backbone} below {one.prefix!r}" for one in found], "or"
        )
        raise UnusableInput(
            f"{source} holds several networks that fit equally well: {choices}; say "
            f"which is meant (--backbone, --below PREFIX).\n{seen(shapes)}"
        )
    return found[0]


def candidates(
    shapes: Mapping[str, Shape],
    told: Mapping[str, Any],
    *,
    backbone: str | None = None,
    below: str | None = None,
) -> tuple[list[Recognised], list[str]]:
    """Every layout that fits, once for each network of the file; and why others do not.

    Of copies of one network (teacher and student, a decoder's alias of its encoder) the
    first by preference is taken.
    """
    found: list[Recognised] = []
    reasons: list[str] = []
    for layout in LAYOUTS:
        if backbone is not None and layout.backbone != backbone:
            continue
        fitting: list[Recognised] = []
        for prefix, part in _parts(layout, shapes, told):
            if below is not None and not prefix.startswith(below):
                continue
            if layout.why_not:
                reasons.append(f"{layout.title}: {layout.why_not}")
                break
            try:
                settings, notes = layout.read(part)
            except _OtherNetwork as error:
                reasons.append(f"{layout.title} that cannot be taken: {error}")
                continue
            fitting.append(Recognised(layout, prefix, settings, tuple(notes)))
        found += _without_copies(fitting)
    return found, reasons


def seen(shapes: Mapping[str, Shape]) -> str:
    """The first names and shapes of a file, one line."""
    first = list(itertools.islice(shapes.items(), _SEEN))
    more = f", ... ({len(shapes)} tensors)" if len(shapes) > len(first) else ""
    return "seen: " + ", ".join(f"{n} {list(s)}" for n, s in first) + more


def known() -> str:
    """All importable layouts, one line."""
    return "known: " + "; ".join(row for row in rows())


def rows() -> list[str]:
    """``SwinUNETR (VoCo, SuPreM, ...) -> swin`` of every importable layout."""
    return [
        f"{layout.title} ({', '.join(layout.published)}) -> {layout.backbone}"
        for layout in LAYOUTS
        if not layout.why_not
    ]


def refused_rows() -> list[tuple[str, str]]:
    """(layout, why not) of those that are known and cannot be taken."""
    return [
        (f"{layout.title} ({', '.join(layout.published)})", layout.why_not)
        for layout in LAYOUTS
        if layout.why_not
    ]


def _parts(
    layout: Layout, shapes: Mapping[str, Shape], told: Mapping[str, Any]
) -> Iterator[tuple[str, Part]]:
    """Prefixes with the layout's tensor below them, the preferred one first."""
    found = []
    for name in shapes:
        if not name.endswith(layout.anchor):
            continue
        prefix = name[: -len(layout.anchor)]
        words = prefix.split(".")
        if (prefix and not prefix.endswith(".")) or _beside_weights(words):
            continue
        found.append(prefix)

    def order(prefix: str) -> tuple[int, int, str]:
        words = prefix.split(".")
        ranks = [i for i, word in enumerate(PREFERRED) if word in words]
        return (min(ranks, default=9), len(words), prefix)

    for prefix in sorted(found, key=order):
        inside = {
            name.removeprefix(prefix): shape
            for name, shape in shapes.items()
            if name.startswith(prefix)
        }
        part = Part(inside, shapes, told)
        if layout.fits(part):
            yield prefix, part


def _beside_weights(words: list[str]) -> bool:
    return any(word.startswith(_NOT_WEIGHTS) for word in words)


# Words of a prefix that tell a copy of a network from another, not one from another.
_ROLE = re.compile(
    r"(ema|teacher|student|momentum|target|online|base|model|module|encoder|decoder|"
    r"backbone|state_dict|network_weights|net$|_orig_mod)"
)


def _without_copies(found: list[Recognised]) -> list[Recognised]:
    """The first of those with equal settings whose prefixes differ in roles alone."""
    kept: dict[str, Recognised] = {}
    for one in found:
        rest = [w for w in one.prefix.split(".") if not _ROLE.match(w)]
        kept.setdefault(f"{rest} {one.settings}", one)
    return list(kept.values())


# What each layout says of its network.


def _cube(count: int) -> int | None:
    side = round(count ** (1 / 3))
    return side if side**3 == count else None


def _conv(part: Part, name: str, axes: int) -> Shape:
    """Shape of a convolution's weight (out, in, kernel...)."""
    shape = part[name]
    if len(shape) != axes + 2:
        raise _OtherNetwork(
            f"{name} is {len(shape) - 2}D {list(shape)}, a network of {axes}D images "
            "is needed"
        )
    return shape


def _swin(part: Part) -> tuple[Settings, list[str]]:
    width, channels, *patch = _conv(part, "patch_embed.proj.weight", 3)
    if len(set(patch)) != 1:
        raise _OtherNetwork(f"its patches are no cubes, {patch}")
    depths = [part.count(f"layers{i}.0.blocks.%d.norm1.weight") for i in range(1, 5)]
    if part.has("layers5."):
        raise _OtherNetwork("it has more than four stages")
    table = "layers%d.0.blocks.0.attn.relative_position_bias_table"
    heads = [part[table % i][1] for i in range(1, 5)]
    window, notes = _window(part, table % 1)
    settings = {
        "in_channels": channels, "feature_size": width, "depths": depths,
        "heads": heads, "window": window, "patch": patch[0],
        "use_v2": "layers1c.0.layer.conv1.conv.weight" in part,
    }  # fmt: skip
    return settings, notes


def _window(part: Part, table: str) -> tuple[list[int], list[str]]:
    """Window (z, y, x): (2 z - 1)(2 y - 1)(2 x - 1) rows make a table of positions."""
    count = part[table][0]
    side = _cube(count)
    if side is not None and side % 2:
        return [(side + 1) // 2] * 3, []
    cells = part.shapes.get(table.replace("bias_table", "index"), (0,))[0]
    sides = range(1, _WIDEST_WINDOW + 1)
    fitting = [
        (z, y, x)
        for z, y, x in itertools.product(sides, repeat=3)
        if (2 * z - 1) * (2 * y - 1) * (2 * x - 1) == count
        and (not cells or z * y * x == cells)
    ]
    if not fitting:
        raise _OtherNetwork(f"no window of attention has {count} relative positions")
    best = min(fitting, key=lambda w: (w[1] != w[2], w))
    if len(fitting) == 1:
        return list(best), []
    return list(best), [
        f"a window of {best} (z, y, x) is assumed; {len(fitting) - 1} other orders "
        "have as many relative positions (--set window=z,y,x)."
    ]


def _heads(width: int) -> tuple[int, list[str]]:
    heads = width // 64 if width % 64 == 0 else _divisor(width)
    return heads, [
        f"attention heads of {width // heads} channels are assumed, {heads} of them; "
        "no shape tells them (--set heads=N)."
    ]


def _divisor(width: int) -> int:
    return next(n for n in (12, 6, 8, 4, 3, 2, 1) if width % n == 0)


_POSITIONS = "patch_embedding.position_embeddings"
_PATCHES = "patch_embedding.patch_embeddings"


def _vit(part: Part) -> tuple[Settings, list[str]]:
    width, channels, *patch = _patches(part)
    count = part[_POSITIONS][1]
    side = _cube(count)
    if side is None:
        raise _OtherNetwork(
            f"its {count} positions make no cube; give the size it learnt at (--set "
            "image_size=z,y,x)"
        )
    heads, notes = _heads(width)
    settings = {
        "in_channels": channels, "hidden": width, "heads": heads, "patch": patch,
        "image_size": [side * p for p in patch],
        "inner": part["blocks.0.mlp.linear1.weight"][0],
        "layers": part.count("blocks.%d.norm1.weight"),
        "qkv_bias": "blocks.0.attn.qkv.bias" in part,
    }  # fmt: skip
    if any(n.endswith("decoder5.transp_conv.conv.weight") for n in part.whole):
        settings["taps"] = [4, 7, 10, 12]  # those of MONAI's UNETR
    return settings, notes


def _patches(part: Part) -> Shape:
    """Shape of the convolution of patches; MONAI's perceptron has its values, too."""
    if f"{_PATCHES}.1.weight" not in part:
        return _conv(part, f"{_PATCHES}.weight", 3)
    width, values = part[f"{_PATCHES}.1.weight"]
    side = _cube(values)
    if side is None:
        raise _OtherNetwork(
            f"its patches of {values} values are no cubes of one channel"
        )
    return width, 1, side, side, side


def _convolved(state: dict[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """A perceptron of patches of one channel as a convolution: the same products."""
    weight = state.pop(f"{_PATCHES}.1.weight", None)
    if weight is not None:
        state[f"{_PATCHES}.weight"] = weight.reshape(-1, 1, *settings["patch"])
        state[f"{_PATCHES}.bias"] = state.pop(f"{_PATCHES}.1.bias")
    return state


def _dino_blocks(part: Part) -> list[str]:
    """What the names of each block begin with; chunks of blocks add a number."""
    found = {
        found[1] for name in part.shapes
        if (found := re.match(r"(blocks\.(?:\d{1,9}\.)?\d{1,9}\.)norm1\.weight$", name))
    }  # fmt: skip
    return sorted(found, key=lambda text: [int(n) for n in re.findall(r"\d+", text)])


def _dino(part: Part) -> tuple[Settings, list[str]]:
    width, channels, *patch = _conv(part, "patch_embed.proj.weight", 3)
    blocks = _dino_blocks(part)
    first = blocks[0]
    if f"{first}mlp.fc1.weight" not in part:
        raise _OtherNetwork("its perceptrons are gated (SwiGLU)")
    scaled = f"{first}ls1.gamma" in part
    registers = part.shapes.get("register_tokens", (1, 0))[1]
    count = part["pos_embed"][1] - int("cls_token" in part)
    side = _cube(count)
    if side is None:
        raise _OtherNetwork(f"its {count} positions make no cube")
    heads, notes = _heads(width)
    settings = {
        "in_channels": channels, "hidden": width, "heads": heads, "patch": patch,
        "image_size": [side * p for p in patch],
        "inner": part[f"{first}mlp.fc1.weight"][0], "layers": len(blocks),
        "qkv_bias": f"{first}attn.qkv.bias" in part,
        "class_token": "cls_token" in part, "registers": registers,
        "layer_scale": 1e-5 if scaled else 0.0, "norm_epsilon": 1e-6,
        "position_offset": 0.1 if scaled and not registers else 0.0,
    }  # fmt: skip
    return settings, notes


def _resnet(part: Part) -> tuple[Settings, list[str]]:
    first, channels, *kernel = _conv(part, "conv1.weight", 3)
    if len(set(kernel)) != 1:
        raise _OtherNetwork(f"its first kernel is no cube, {kernel}")
    settings = {"in_channels": channels, "stem_kernel": kernel[0], **_stages(part)}
    _check_stages(part, settings, first)
    projected = part.has("layer2.0.downsample.")
    settings["shortcut"] = "projection" if projected else "padding"
    settings["norm"] = "batch" if "bn1.running_mean" in part else "instance"
    notes = []
    if settings["norm"] == "instance":
        notes.append(
            "instance norm is assumed: there are no running statistics, and no name "
            "tells group norm."
        )
    return settings, notes


def _stages(part: Part) -> Settings:
    """Widths, blocks and kind of a residual network's stages."""
    stages = next(
        i for i in itertools.count(1) if f"layer{i}.0.conv1.weight" not in part
    )
    numbers = range(1, stages)
    deep = "layer1.0.conv3.weight" in part
    return {
        "widths": [part[f"layer{i}.0.conv1.weight"][0] for i in numbers],
        "stage_blocks": [part.count(f"layer{i}.%d.conv1.weight") for i in numbers],
        "block": "bottleneck" if deep else "basic",
    }


def _check_stages(part: Part, settings: Settings, first: int) -> None:
    """Refuse relatives of the residual network that share its names."""
    widths = settings["widths"]
    if widths[0] != first:
        raise _OtherNetwork(
            f"its first convolution makes {first} channels, its first stage {widths[0]}"
        )
    inner = part["layer1.0.conv2.weight"]
    if inner[1] != inner[0]:
        raise _OtherNetwork("its convolutions are grouped (ResNeXt)")
    if settings["block"] == "bottleneck":
        outside = part["layer1.0.conv3.weight"][0]
        if outside != 4 * widths[0]:
            raise _OtherNetwork(
                f"its bottlenecks widen {widths[0]} channels to {outside}, not fourfold"
            )


def _flat_resnet(part: Part) -> tuple[Settings, list[str]]:
    first, channels, *kernel = _conv(part, "conv1.weight", 2)
    if kernel != [7, 7]:
        raise _OtherNetwork(f"its first kernel is {kernel}, not 7 x 7")
    settings = {"in_channels": channels, **_stages(part)}
    _check_stages(part, settings, first)
    settings["norm"] = "batch" if "bn1.running_mean" in part else "group"
    notes = []
    if channels == 3:
        settings["in_channels"] = 1
        notes.append(
            "its three colour channels become one: a grey picture is seen as the three "
            "saw it (--set in_channels=3 keeps them)."
        )
    return settings, notes


# RadImageNet's torchvision network, its layers by number.
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3",
            "7": "layer4"}  # fmt: skip


def _by_name(name: str) -> str:
    number, dot, rest = name.partition(".")
    return f"{_NUMBERED.get(number, number)}{dot}{rest}"


def _by_names(state: dict[str, Tensor], _: Settings) -> dict[str, Tensor]:
    return {_by_name(name): value for name, value in state.items()}


def _numbered_resnet(part: Part) -> tuple[Settings, list[str]]:
    named = {_by_name(name): shape for name, shape in part.shapes.items()}
    return _flat_resnet(Part(named, part.whole, part.told))


def _resunet(part: Part) -> tuple[Settings, list[str]]:
    stages = part.count("stages.%d.0.conv1.conv.weight")
    shapes = [part[f"stages.{i}.0.conv1.conv.weight"] for i in range(stages)]
    settings = {
        "in_channels": shapes[0][1],
        "channels": [shape[0] for shape in shapes],
        "blocks": part.count("stages.0.%d.conv1.conv.weight"),
    }
    if any(set(shape[2:]) != {3} for shape in shapes):
        raise _OtherNetwork(
            "its kernels are flat, and their strides stand in its card alone: import "
            "the model folder, or give --set steps"
        )
    return settings, []


def _resenc(part: Part) -> tuple[Settings, list[str]]:
    _conv(part, "stem.convs.0.conv.weight", 3)
    stages = part.count("stages.%d.blocks.0.conv1.conv.weight")
    firsts = [part[f"stages.{i}.blocks.0.conv1.conv.weight"] for i in range(stages)]
    kernels = [list(shape[2:]) for shape in firsts]
    blocks = [
        part.count(f"stages.{i}.blocks.%d.conv1.conv.weight") for i in range(stages)
    ]
    if part.has("stages.0.blocks.0.conv3."):
        raise _OtherNetwork("its blocks are bottlenecks")
    settings: Settings = {
        "in_channels": part["stem.convs.0.conv.weight"][1],
        "channels": [shape[0] for shape in firsts], "blocks": blocks,
    }  # fmt: skip
    if any(kernel != [3, 3, 3] for kernel in kernels):
        settings["kernels"] = kernels
    notes = _with_decoder(part, settings)
    steps = _planned_steps(part.told, stages)
    if steps is not None:
        usual = [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)]
        if steps != usual:
            settings["steps"] = steps
    elif "kernels" in settings:
        notes.append(
            "strides of 1, then 2 are assumed: the file has no plan that tells them, "
            "and its kernels are flat (--set steps=...)."
        )
    return settings, notes


def _with_decoder(part: Part, settings: Settings) -> list[str]:
    """Take the decoder of an nnU-Net along; of a pretraining it is left to the user."""
    if not any(name.endswith("decoder.transpconvs.0.weight") for name in part.whole):
        return []
    if str(part.told.get("trainer_name", "")).startswith("nnUNet"):
        settings["full_map"] = True
        return []
    return [
        "its decoder is left aside; --set full_map=true takes it along, with maps of "
        "the image's own resolution, which need memory."
    ]


def _planned_steps(told: Mapping[str, Any], stages: int) -> list[list[int]] | None:
    """The strides of each stage by the file's plan; None where it does not say."""
    for kwargs in _arch_kwargs(told):
        strides = kwargs.get("strides")
        if isinstance(strides, list) and len(strides) == stages:
            rows = [[s] * 3 if isinstance(s, int) else s for s in strides]
            if all(isinstance(row, list) and len(row) == 3 for row in rows):
                return [[int(n) for n in row] for row in rows]
    return None


def _arch_kwargs(told: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Settings of the network wherever nnssl and nnU-Net keep them."""
    plan = told.get("nnssl_adaptation_plan")
    if isinstance(plan, Mapping):
        found = (plan.get("architecture_plans") or {}).get("arch_kwargs")
        if isinstance(found, Mapping):
            yield found
    plans = (told.get("init_args") or {}).get("plans")
    if isinstance(plans, Mapping):
        for one in (plans.get("configurations") or {}).values():
            found = ((one or {}).get("architecture") or {}).get("arch_kwargs")
            if isinstance(found, Mapping):
                yield found


def _primus(part: Part) -> tuple[Settings, list[str]]:
    width, channels, *patch = _conv(part, "down_projection.proj.weight", 3)
    notes: list[str] = []
    # Its four sizes have heads of 66 or 72 channels.
    each = next((n for n in (66, 72, 60, 48, 24, 12, 6) if width % n == 0), 0)
    if not each:
        raise _OtherNetwork(f"its {width} channels make no heads of rotary positions")
    heads = width // each
    if width not in (396, 792, 864, 1056):
        notes.append(
            f"attention heads of {each} channels are assumed, {heads} of them; no "
            "shape tells them (--set heads=N)."
        )
    registers = part.shapes.get("register_tokens", (1, 0, width))[1]
    nnssl = "nnssl_adaptation_plan" in part.told
    settings = {
        "in_channels": channels, "hidden": width, "heads": heads, "patch": patch,
        "layers": part.count("eva.blocks.%d.norm1.weight"), "registers": registers,
        "layer_scale": 0.1 if "eva.blocks.0.gamma_1" in part else 0.0,
        "attention_norm": part.has("eva.blocks.0.attn.norm."),
        "positions": "eva.pos_embed" in part, "y_first": nnssl,
    }  # fmt: skip
    if "eva.pos_embed" in part:
        count = part["eva.pos_embed"][1] - registers
        side = _cube(count)
        if side is None:
            raise _OtherNetwork(f"its {count} positions make no cube")
        settings["image_size"] = [side * p for p in patch]
    if not nnssl:
        notes.append(
            "z is taken for the slowest axis of its tokens, as in nnU-Net; nnssl "
            "trains with y there (--set y_first=true)."
        )
    return settings, notes


def _segresnet(part: Part) -> tuple[Settings, list[str]]:
    filters, channels, *_ = _conv(part, "convInit.conv.weight", 3)
    levels = part.count("down_layers.%d.1.conv1.conv.weight")
    batch = "down_layers.0.1.norm1.running_mean" in part
    blocks = []
    for level in range(levels):
        inside = [
            n for n in part.shapes
            if re.match(rf"down_layers\.{level}\.\d+\.conv1\.conv\.weight$", n)
        ]  # fmt: skip
        blocks.append(len(inside))
    settings = {
        "layout": "plain", "in_channels": channels, "filters": filters,
        "blocks": blocks, "norm": "batch" if batch else "group",
    }  # fmt: skip
    if batch:
        return settings, []
    return settings, [
        "group norm of 8 groups is assumed, MONAI's default; no name tells instance "
        "norm (--set norm=instance)."
    ]


def _segresnet_ds(part: Part) -> tuple[Settings, list[str]]:
    filters, channels, *_ = _conv(part, "conv_init.weight", 3)
    levels = part.count("layers.%d.blocks.0.conv1.weight")
    batch = "layers.0.blocks.0.norm1.running_mean" in part
    settings = {
        "layout": "ds", "in_channels": channels, "filters": filters,
        "blocks": [
            part.count(f"layers.{i}.blocks.%d.conv1.weight") for i in range(levels)
        ],
        "norm": "batch" if batch else "instance",
        # the decoder here has instance norms, and begins with the image's own grid
        "full_map": not batch and any("up_layers.0." in name for name in part.whole),
    }  # fmt: skip
    if batch:
        return settings, []
    return settings, [
        "instance norm is assumed: there are no running statistics, and no name tells "
        "group norm (--set norm=group)."
    ]


def _nothing(part: Part) -> tuple[Settings, list[str]]:
    raise _OtherNetwork("there is no network for it")


def _has_conv1(axes: int) -> Callable[[Part], bool]:
    def fits(part: Part) -> bool:
        return len(part.shapes.get("conv1.weight", ())) == axes + 2

    return fits


def _is_dino(axes: int) -> Callable[[Part], bool]:
    def fits(part: Part) -> bool:
        shape = part.shapes.get("patch_embed.proj.weight", ())
        own = "pos_embed" in part and bool(_dino_blocks(part))
        return own and len(shape) == axes + 2

    return fits


_PLAIN = "a plain U-Net, and the networks here are residual"

# The order is that of the help and of the docs.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "swin_unetr", "SwinUNETR, v1 and v2",
        ("MONAI", "VoCo", "VoComni", "SuPreM Swin UNETR", "NVIDIA Swin UNETR",
         "nnssl SwinUNETR"),
        "layers1.0.blocks.0.attn.relative_position_bias_table", "swin", _swin,
    ),
    Layout(
        "vit", "Vision transformer of MONAI", ("MONAI ViT", "UNETR", "BrainIAC v2"),
        _POSITIONS, "vit", _vit, own=_convolved,
    ),
    Layout(
        "vit_dino", "Vision transformer of DINOv2, 3D", ("3DINO", "DINOv2-3D-Med"),
        "patch_embed.proj.weight", "vit", _dino, _is_dino(3),
    ),
    Layout(
        "resenc", "ResEnc U-Net",
        ("nnssl, OpenMind", "SSL3D challenge", "nnFoundationCNN", "nnU-Net ResEnc"),
        "stem.convs.0.conv.weight", "resenc", _resenc,
        lambda part: "stages.0.blocks.0.conv1.conv.weight" in part,
    ),
    Layout(
        "primus", "Primus",
        ("nnssl, OpenMind", "SSL3D challenge", "nnFoundationViT", "nnU-Net Primus"),
        "down_projection.proj.weight", "primus", _primus,
        lambda part: part.has("eva.blocks.0."),
    ),
    Layout(
        "segresnet", "SegResNet", ("MONAI", "SuPreM SegResNet"),
        "convInit.conv.weight", "segresnet", _segresnet,
    ),
    Layout(
        "segresnet_ds", "SegResNetDS, SegResEncoder", ("MONAI", "CT-FM"),
        "conv_init.weight", "segresnet", _segresnet_ds,
        lambda part: "layers.0.blocks.0.conv1.weight" in part,
    ),
    Layout(
        "resnet", "ResNet, 3D", ("MedicalNet", "MONAI", "BrainIAC v1"),
        "layer1.0.conv1.weight", "resnet", _resnet, _has_conv1(3),
    ),
    Layout(
        "resnet2d", "ResNet, 2D", ("torchvision", "SwAV", "MoCo", "DINO"),
        "layer1.0.conv1.weight", "resnet2d", _flat_resnet, _has_conv1(2),
    ),
    Layout(
        "resnet2d_numbered", "ResNet, 2D, layers by number", ("RadImageNet",),
        "4.0.conv1.weight", "resnet2d", _numbered_resnet,
        lambda part: len(part.shapes.get("0.weight", ())) == 4, own=_by_names,
    ),
    Layout(
        "resunet", "Residual U-Net of this package", ("an encoder without its card",),
        "stages.0.0.conv1.conv.weight", "resunet", _resunet,
    ),
    Layout(
        "unet_nnunet", "PlainConvUNet of nnU-Net", ("VoComni_nnunet", "nnU-Net"),
        "encoder.stages.0.0.convs.0.conv.weight", "", _nothing, why_not=_PLAIN,
    ),
    Layout(
        "unet_genesis", "3D U-Net of Models Genesis",
        ("Models Genesis", "SuPreM U-Net"),
        "down_tr64.ops.0.conv1.weight", "", _nothing, why_not=_PLAIN,
    ),
    Layout(
        "unet_stu", "STU-Net", ("STU-Net",),
        "conv_blocks_context.0.0.conv1.weight", "", _nothing,
        why_not="its U-Net names and joins its blocks in a way of its own",
    ),
    Layout(
        "unet_anatomix", "U-Net of anatomix", ("anatomix",),
        "model.0.weight", "", _nothing,
        lambda part: part.has("model.") and len(part["model.0.weight"]) == 5,
        why_not=_PLAIN,
    ),
    Layout(
        "sam_med3d", "SAM-Med3D", ("SAM-Med3D",),
        "image_encoder.blocks.0.attn.rel_pos_h", "", _nothing,
        why_not="its transformer has relative positions along three axes",
    ),
    Layout(
        "vit_2d", "Vision transformer, 2D", ("DINOv2", "DINOv3", "MAE", "timm"),
        "patch_embed.proj.weight", "", _nothing,
        _is_dino(2),
        why_not="of two dimensions; the transformers here take volumes",
    ),
    Layout(
        "swin_2d", "Swin Transformer, 2D", ("Microsoft", "timm"),
        "layers.0.blocks.0.attn.relative_position_bias_table", "", _nothing,
        why_not="of two dimensions; the transformers here take volumes",
    ),
)  # fmt: skip
