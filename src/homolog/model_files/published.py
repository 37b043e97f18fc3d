"""How scans were prepared for a published network, as far as it is known.

A plan that comes with the file tells it (``nnssl_adaptation_plan`` within it,
``adaptation_plan.json`` beside it, nnU-Net's plans); else what the
project publishes of its files, where names and shapes tell whose file it is. It becomes
the preprocessing of the model's card, by which new scans are prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from homolog.config import to_dict
from homolog.json_files import object_or_none
from homolog.model_files.foreign import Foreign
from homolog.model_files.layouts import Recognised
from homolog.store.learnt_spacing import KEY
from homolog.store.preprocess import Preprocessing, recipe_words
from homolog.words import lengths_text

# Windows slid over a scan are made a third larger than the card's; beyond this side
# that is more than most machines hold, so such a card leaves it to the default.
_WIDEST = 128
PLAN = "nnssl_adaptation_plan"
_PLAN_FILES = ("adaptation_plan.json", "nnssl_adaptation_plan.json")
_RAS = "x, y, z towards right, front and head (MONAI's RAS); here z, y, x are read"


@dataclass(frozen=True)
class Known:
    """What is known of the preparation.

    Attributes:
        name: Whose network it is, in a word.
        origin: Who says so, for the card and people.
        recipe: Of every scan; None: it is not known.
        patch: Size of the crops it learnt on, voxels (z, y, x); empty: not known.
        native: Whether scans were taken at their own voxel size.
        licence: As published; empty: not known.
        remarks: What cannot be done alike here, in sentences.
    """

    name: str
    origin: str
    recipe: Preprocessing | None = None
    patch: tuple[int, ...] = ()
    native: bool = False
    licence: str = ""
    remarks: tuple[str, ...] = ()


def published_card(file: Foreign, found: Recognised) -> dict[str, Any]:
    """The part of a model's card that tells layout and preparation.

    Args:
        file: The weight file; plans beside it are looked at.
        found: What it was recognised as.
    """
    card: dict[str, Any] = {
        "layout": {
            "name": found.layout.key, "title": found.layout.title,
            "below": found.prefix, "assumed": list(found.notes),
        },
    }  # fmt: skip
    known = _by_plan(file) or _by_family(file, found)
    card["title"] = found.layout.title if known is None else known.name
    if known is None:
        return card
    if known.licence:
        card["licence"] = known.licence
    card["published"] = {
        "origin": known.origin, "patch": list(known.patch),
        "remarks": list(known.remarks),
    }  # fmt: skip
    if known.recipe is not None:
        card["preprocessing"] = to_dict(known.recipe)
        if known.native or known.recipe.spacing_mm is not None:
            card[KEY] = None
    if known.patch and max(known.patch) <= _WIDEST:
        card["window"] = list(known.patch)
    return card


def published_lines(card: Mapping[str, Any]) -> list[str]:
    """What a card says of layout and preparation, for people."""
    layout = card.get("layout") or {}
    lines = []
    if layout:
        below = f", names below {layout['below']!r}" if layout.get("below") else ""
        lines.append(f"layout: {layout.get('title')}{below}")
        lines += [f"  {text}" for text in layout.get("assumed", ())]
    told = card.get("published")
    if not told:
        if layout and not card.get("preprocessing"):
            lines.append(
                "preparation: not known; scans are prepared as usual here, at their "
                "own voxel size"
            )
        return lines
    recipe = card.get("preprocessing")
    if recipe:
        lines.append(f"preparation, by {told['origin']}: {recipe_words(recipe)}")
    else:
        lines.append(f"by {told['origin']}")
    if told.get("patch"):
        lines.append(f"  learnt on crops of {lengths_text(told['patch'], 'voxels')}")
    return [*lines, *(f"  {text}" for text in told.get("remarks", ()))]


# Plans.


def _by_plan(file: Foreign) -> Known | None:
    """By nnssl's adaptation plan, or the plans of an nnU-Net checkpoint."""
    plan, origin = file.told.get(PLAN), f"the {PLAN} in the file"
    if not isinstance(plan, Mapping):
        for name in _PLAN_FILES:
            plan = object_or_none(file.path.with_name(name))
            if plan is not None and "pretrain_plan" in plan:
                origin = f"{name} beside the file"
                break
            plan = None
    if isinstance(plan, Mapping):
        chosen = _first((plan.get("pretrain_plan") or {}).get("configurations"))
        patch = plan.get("recommended_downstream_patchsize") or chosen.get("patch_size")
        return _planned("nnssl", chosen, origin, patch, _licence(file))
    init = file.told.get("init_args") or {}
    plans = init.get("plans") if isinstance(init, Mapping) else None
    if isinstance(plans, Mapping):
        all_of_them = plans.get("configurations") or {}
        chosen = all_of_them.get(init.get("configuration")) or _first(all_of_them)
        patch = chosen.get("patch_size")
        known = _planned("nnU-Net", chosen, "nnU-Net's plans in the file", patch)
        return _with_window(known, plans)
    return None


def _first(configurations: object) -> Mapping[str, Any]:
    if isinstance(configurations, Mapping):
        for one in configurations.values():
            if isinstance(one, Mapping):
                return one
    return {}


def _planned(
    name: str, chosen: Mapping[str, Any], origin: str, patch: object, licence: str = ""
) -> Known:
    """The preparation of a configuration of nnssl or nnU-Net."""
    spacing = _triple(chosen.get("spacing"))
    schemes = [str(s) for s in chosen.get("normalization_schemes") or ()]
    remarks = []
    scaling = "usual"
    if schemes and all(s.startswith("ZScore") for s in schemes):
        scaling = "zscore"
        if any(chosen.get("use_mask_for_norm") or ()):
            remarks.append(
                "mean and spread were those of the non-zero voxels; here of all."
            )
    elif schemes:
        remarks.append(
            f"its values were prepared by {', '.join(schemes)}; here as usual."
        )
    size = _whole(patch)
    return Known(
        name, origin, Preprocessing(spacing_mm=spacing, scaling=scaling), size,
        native=spacing is None, licence=licence, remarks=tuple(remarks),
    )  # fmt: skip


def _with_window(known: Known, plans: Mapping[str, Any]) -> Known:
    """The CT values of an nnU-Net: percentiles, mean and spread of labelled voxels."""
    values = _first(plans.get("foreground_intensity_properties_per_channel"))
    ends = values.get("percentile_00_5"), values.get("percentile_99_5")
    is_ct = any("CTNormalization" in text for text in known.remarks)
    low, high = (float(v) if isinstance(v, int | float) else None for v in ends)
    if not is_ct or known.recipe is None or low is None or high is None or low >= high:
        return known
    recipe = replace(known.recipe, window_hu=(low, high))
    told = values.get("mean"), values.get("std")
    mean, spread = (float(v) if isinstance(v, int | float) else None for v in told)
    if mean is not None and spread is not None and spread > 0:
        recipe = replace(recipe, scaling="dataset", dataset_hu=(mean, spread))
        return replace(known, recipe=recipe, remarks=())
    text = (
        f"its CT values were cut to {low:g} to {high:g} HU and had mean 0 and spread 1 "
        "over its data set, of which mean and spread are not told; here they are cut "
        "alike and go from -1 to 1."
    )
    return replace(known, recipe=recipe, remarks=(text,))


def _licence(file: Foreign) -> str:
    """NnFoundation's files carry what is to be cited."""
    if "citations" in file.told:
        return "CC BY-SA 4.0 as published (nnFoundation); see the page of the file"
    return ""


def _triple(value: object) -> tuple[float, float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    try:
        z, y, x = (float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return (z, y, x) if min(z, y, x) > 0 else None


def _whole(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return ()
    try:
        return tuple(int(v) for v in value)
    except (TypeError, ValueError):
        return ()


# Settings that no shape tells, in the ``config.json`` of hubs -> theirs here.
_SETTINGS = {
    "heads": ("num_heads", "num_attention_heads"), "norm": ("norm", "norm_name"),
}  # fmt: skip


def settled(file: Foreign, found: Recognised) -> Recognised:
    """What was assumed, taken from ``config.json`` beside the file where it says so."""
    config = object_or_none(file.path.with_name("config.json")) or {}
    made: dict[str, Any] = {}
    for name, others in _SETTINGS.items():
        value = next((config[other] for other in others if other in config), None)
        if isinstance(value, list) and value:
            value = value[0]  # MONAI's ("instance", {"affine": true})
        if isinstance(value, str):
            value = value.lower()
        assumed = any(f"--set {name}=" in note for note in found.notes)
        kind = type(found.settings.get(name))
        if assumed and isinstance(value, kind) and not isinstance(value, bool):
            made[name] = value
    if not made:
        return found
    notes = [n for n in found.notes if not any(f"--set {k}=" in n for k in made)]
    told = ", ".join(f"{name} {value}" for name, value in made.items())
    notes.append(f"{told}: by config.json beside the file.")
    return replace(found, settings={**found.settings, **made}, notes=tuple(notes))


# What projects publish of their files.


@dataclass(frozen=True)
class _Family:
    layouts: tuple[str, ...]
    is_it: Callable[[Foreign], bool]
    known: Known


def _any(*words: str) -> Callable[[Foreign], bool]:
    """Whether the name of the file or of a tensor holds one of some words."""

    def is_it(file: Foreign) -> bool:
        name = file.path.name.lower()
        return any(
            word in name or any(word in tensor for tensor in file.tensors)
            for word in words
        )

    return is_it


def _named(*words: str) -> Callable[[Foreign], bool]:
    def is_it(file: Foreign) -> bool:
        place = f"{file.path.parent.name}/{file.path.name}".lower()
        return any(word in place for word in words)

    return is_it


def _is_voco(file: Foreign) -> bool:
    """VoCo's files by their names, or by what no other project publishes."""
    if _named("voco")(file):
        return True
    second = any("layers1c.0." in name for name in file.tensors)
    head = next(
        (v for n, v in file.tensors.items() if n.endswith("out.conv.conv.weight")), None
    )
    alone = not any("decoder1." in name for name in file.tensors)
    encoders = any(name.endswith("encoder10.layer.conv1.conv.weight")
                   for name in file.tensors)  # fmt: skip
    whole = head is not None and head.shape[0] == 21
    return second and (whole or (alone and encoders))


_CT_1_5 = Preprocessing(
    spacing_mm=(1.5, 1.5, 1.5), window_hu=(-175.0, 250.0), scaling="unit"
)
_FAMILIES = (
    _Family(
        ("swin_unetr",), _is_voco,
        Known(
            "VoCo", "what VoCo publishes", _CT_1_5,
            licence="as VoCo publishes it, unread here",
            remarks=(f"its axes are {_RAS}.",),
        ),
    ),
    _Family(
        ("swin_unetr", "segresnet"), _any("suprem", "organ_embedding"),
        Known(
            "SuPreM", "what SuPreM publishes", _CT_1_5, (96, 96, 96),
            licence="as SuPreM publishes it, unread here",
            remarks=(f"its axes are {_RAS}.",),
        ),
    ),
    _Family(
        ("swin_unetr",), _any("rotation_head", "contrastive_head", "nv_swin_unetr"),
        Known(
            "NVIDIA", "what NVIDIA publishes of its Swin UNETR pretraining",
            Preprocessing(
                spacing_mm=(2.0, 1.5, 1.5), window_hu=(-1000.0, 1000.0), scaling="unit"
            ),
            (96, 96, 96), remarks=(f"its axes are {_RAS}.",),
        ),
    ),
    _Family(
        ("segresnet_ds",), _named("ct_fm", "ct-fm", "ctfm"),
        Known(
            "CT-FM", "what CT-FM publishes",
            Preprocessing(window_hu=(-1024.0, 2048.0), scaling="unit"), native=True,
        ),
    ),
    _Family(
        ("vit_dino",), _named("3dino", "teacher_checkpoint"),
        Known(
            "3DINO", "what 3DINO publishes",
            Preprocessing(percentiles=(0.05, 99.95), scaling="signed"),
            (112, 112, 112), native=True,
            licence="CC BY-NC-ND 4.0 as published (3DINO): no commercial use",
        ),
    ),
    _Family(
        ("vit", "resnet"), _named("brainiac"),
        Known(
            "BrainIAC", "what BrainIAC publishes",
            Preprocessing(spacing_mm=(1.0, 1.0, 1.0)), (96, 96, 96),
            licence="research without profit, as published (BrainIAC)",
            remarks=(
                "its brains were skull-stripped, registered to an atlas, and mean 0 "
                "and spread 1 over the brain.",
            ),
        ),
    ),
    _Family(
        ("resnet",), _named("medicalnet", "23dataset", "resnet_10", "resnet_18",
                            "resnet_34", "resnet_50", "resnet_101"),
        Known(
            "MedicalNet", "what MedicalNet publishes", Preprocessing(), native=True,
            licence="MIT as published (MedicalNet)",
            remarks=(
                "mean 0 and spread 1 over the non-zero voxels; CT, too.",
                "stages 3 and 4 halve the map here; in MedicalNet's own segmentation "
                "their kernels are widened instead (dilation), with the same weights.",
            ),
        ),
    ),
)  # fmt: skip


def _by_family(file: Foreign, found: Recognised) -> Known | None:
    for family in _FAMILIES:
        if found.layout.key in family.layouts and family.is_it(file):
            return family.known
    return None


def weight_file(folder: Path) -> Path | None:
    """The one weight file of a folder as hubs lay them out; None: none or several."""
    usual = ("model.safetensors", "pytorch_model.bin", "checkpoint_final.pth")
    for name in usual:
        if (folder / name).is_file():
            return folder / name
    found = [p for p in sorted(folder.glob("*")) if p.suffix in WEIGHTS]
    return found[0] if len(found) == 1 else None


WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
