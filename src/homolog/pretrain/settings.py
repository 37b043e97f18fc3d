"""From a request to a complete, checked configuration of a pretraining.

``resolve`` merges recipe and overrides, then fits crops, batch and settings to the
network and the scans; what it decides is written to ``run.json``, so that a resume
repeats it. Below it: which cases are seen, and which places of other patients the
matched views of some methods lie at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.config import ConfigError, from_dict, option, to_dict
from homolog.distributed import choose_device
from homolog.errors import UnusableInput
from homolog.feed.batches import Feed, Pairing, feed_threads
from homolog.feed.partners import Partners, SameDataset, partners_of, random_partners
from homolog.feed.reading import CaseRef, StoredCases, grid_of
from homolog.geometry.affine import Index
from homolog.geometry.anisotropy import crop_like, thick_axis
from homolog.memory import bounded
from homolog.methods import METHODS
from homolog.methods.base import Method, PairsWanted
from homolog.model_files.card import read_card, unlike_store
from homolog.model_files.decoder import fill_decoder, load_decoder
from homolog.model_files.encoder import load_encoder, own_backbone
from homolog.model_files.folder import find_model
from homolog.recipes import PaperScans
from homolog.store.pairs import PairTable, read_pairs
from homolog.store.store import Store
from homolog.training.config import TrainingConfig
from homolog.training.run_settings import (
    by_device,
    cpu_threads,
    fitted_backbone,
    in_steps,
    read_recipe,
    run_settings,
)
from homolog.views.view import ViewSpec, Whole
from homolog.words import listed, spacing_text, times

TABLES = ("method", "backbone", "training")


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining, as it is written to ``run.json``."""

    method: str = option("s2dc", "what is learnt; see homolog methods")
    stores: tuple[str, ...] = option((), "stores to learn from")
    method_config: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    encoder: str = option("", "run or weight file to start from; empty: random weights")
    recipe: str = option("auto", "settings it was made from")
    without_splits: tuple[str, ...] = option(
        ("test",), "cases of these splits are never seen"
    )
    without_cases: tuple[str, ...] = option((), "further cases that are never seen")
    labels_of: tuple[str, ...] | None = option(
        None,
        "cases whose labels may be used; all others are taken as unlabelled",
        empty="all",
    )
    balance: float = option(
        0.0, "share of crops centred on a label", minimum=0.0, maximum=1.0
    )
    share_by: str = option(
        "store",
        "between whom crops are shared out, and in each between labelled and "
        "unlabelled scans",
        choices=("store", "modality"),
    )
    share_power: float = option(
        1.0,
        "how: 1 by number of scans, 0.5 by its square root, 0 evenly",
        minimum=0.0,
        maximum=1.0,
    )
    seed: int = option(0, "seed of everything random", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:i")
    threads: int = option(0, "CPU threads of the network; 0: all cores", minimum=0)
    feed_threads: int = option(
        0, "threads that read crops ahead; 0: by the device", minimum=0
    )
    store_hashes: tuple[str, ...] = option((), "what the stores held at the start")
    notes: tuple[str, ...] = option((), "what was decided for the user")


def resolve(
    method: str,
    stores: Sequence[str | Path],
    *,
    recipe: str = "auto",
    backbone: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    **others: Any,
) -> dict[str, Any]:
    """A complete configuration for ``job``; everything that can be checked, is.

    Args:
        method: Name of a method.
        stores: Store folders.
        recipe: One of the method's, ``auto`` (by the device), or a TOML or JSON file
            with the tables ``method``, ``backbone`` (with ``name``), ``training``.
        backbone: Another network than the recipe's; None: that of ``encoder``, where
            one is given.
        settings: Nested overrides with the same keys; they win.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        others: More fields of PretrainConfig (``encoder``, ``without_splits``, ...).

    Raises:
        ConfigError: A name or value that cannot be meant.
        UnusableInput: A store, encoder file or crop size that cannot be used.
    """
    cls = _method_class(method)
    overrides = dict(settings or {})
    unknown = sorted(set(overrides) - set(TABLES))
    if unknown:
        raise ConfigError(
            f"settings start with method., backbone. or training., got {unknown[0]!r}."
        )
    name, tables = _recipe(cls, method, by_device(recipe, device))
    opened = [Store.open(path) for path in stores]
    if not opened:
        raise UnusableInput("at least one store is needed to learn from.")
    small, network = name in cls.FOR_TWO_CORES, dict(overrides.get("backbone", {}))
    backbone = backbone or network.pop("name", None)
    if backbone is None and others.get("encoder"):
        own = own_backbone(others["encoder"])
        backbone = None if own is None else str(own["name"])
    merged = run_settings(
        tables, {**overrides, "backbone": network}, table="method", recipe_name=name,
        config=cls.Config, where=method, backbone=backbone, small=small,
    )  # fmt: skip
    config = {
        "method": method,
        "stores": [str(Path(p).resolve()) for p in stores],
        "method_config": merged.own,
        "backbone": merged.backbone,
        "training": merged.training,
        "recipe": name,
        "seed": seed,
        "device": device,
        "store_hashes": [store.hash for store in opened],
        "balance": cls.balance,
        "share_power": cls.share_power,
        **others,
    }
    return to_dict(
        _completed(
            from_dict(PretrainConfig, config), opened, overrides.get("method", {})
        )
    )


def resolve_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``resolve`` as one mapping; what is None is left out.

    Raises:
        ConfigError: No method or no store is named, or a name that cannot be meant.
        UnusableInput: As ``resolve``.
    """
    given = {key: value for key, value in request.items() if value is not None}
    if not given.get("method"):
        raise ConfigError("choose a method to pretrain with.")
    return resolve(given.pop("method"), given.pop("stores", ()), **given)


def build_method(config: PretrainConfig) -> Method:
    """The method on its backbone; the same weights for the same seed.

    Raises:
        ConfigError: The method's settings and the backbone do not go together.
    """
    cls = METHODS.get(config.method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            start = _starting_backbone(config)
            with bounded(f"the method {config.method} with these settings"):
                own: Any = config.method_config
                built = cls(start, from_dict(cls.Config, own, where=config.method))
            network = built.encoder()
            for spec in built.views().values():
                network.check_size(spec.size)
        except UnusableInput:
            raise
        except ValueError as error:
            raise ConfigError(
                f"{config.method} on {config.backbone['name']}: {error} "
                "(settings: --set method.KEY=VALUE)"
            ) from error
    return built


def _starting_backbone(config: PretrainConfig) -> Backbone:
    chosen = dict(config.backbone)
    name = str(chosen.pop("name"))
    if not config.encoder:
        return build(name, chosen)
    loaded = load_encoder(
        config.encoder, {"name": name, "config": chosen}, chosen.get("in_channels")
    )
    if loaded.card["backbone"]["name"] != name:
        raise ConfigError(
            f"the encoder {config.encoder} is a {loaded.card['backbone']['name']}, "
            f"not a {name}."
        )
    return loaded.backbone.train()


def go_on_decoding(config: PretrainConfig, method: Method) -> str:
    """Fill a method's dense decoder from where the encoder comes from.

    Returns:
        What was taken, for people; empty where there was nothing to take.
    """
    decoder = method.dense_decoder()
    saved = load_decoder(config.encoder) if decoder and config.encoder else None
    if decoder is None or saved is None:
        return ""
    head = () if saved.segments else None
    taken = fill_decoder(decoder, saved, head, config.encoder)
    return f"{taken.words(saved.source)}." if taken.whole else ""


def _method_class(name: str) -> type[Method]:
    if name not in METHODS.names():
        raise ConfigError(
            f"unknown method {name!r}; known: {', '.join(METHODS.names())}."
        )
    return METHODS.get(name)


def _recipe(
    cls: type[Method], method: str, recipe: str
) -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """Name and tables of one of the method's recipes, or of a file."""
    if recipe in cls.RECIPES:
        return recipe, cls.RECIPES[recipe]
    path = Path(recipe)
    if path.suffix not in (".toml", ".json") or not path.is_file():
        raise ConfigError(
            f"{method} has no recipe {recipe!r}; recipes: {', '.join(cls.RECIPES)}, "
            "auto, or a .toml or .json file."
        )
    return str(path), read_recipe(path, TABLES)


def _completed(
    config: PretrainConfig, stores: Sequence[Store], given: Mapping[str, Any]
) -> PretrainConfig:
    """Channels and crops from the data, threads from the machine; all built once.

    Args:
        config: Recipe and overrides.
        stores: Of the config, open.
        given: Settings of the method that were given, not taken from a recipe.
    """
    cases = cases_of(config, stores)
    config = dataclasses.replace(
        config,
        backbone={"in_channels": cases[0].card.channels, **config.backbone},
        threads=cpu_threads(config.threads),
        feed_threads=config.feed_threads or feed_threads(choose_device(config.device)),
    )
    config = dataclasses.replace(config, backbone=_fitted_network(config, cases))
    config = as_slices(config, given)
    config = as_encoder_has(config, given)
    cls = METHODS.get(config.method)
    config = dataclasses.replace(
        config, notes=(*config.notes, *_unlike_encoder(config, stores))
    )
    if config.recipe in cls.SOURCES:
        config = dataclasses.replace(
            config, notes=(*config.notes, *_unlike_paper(cls.paper_scans, stores))
        )
    else:
        config = as_thick_slices(config, cases, given)
        if "size" not in given:
            config = fitted(config, cases)
    config = from_data(config, cases)
    config = dataclasses.replace(config, training=in_steps(config.training, len(cases)))
    built = build_method(config)  # refuses illegal sizes now, not in the worker
    find_partners(built, stores, cases, config.seed)
    return whole_turns(config, len(built.turns()))


# Crops, batch and settings made to fit the network and the scans.


def _unlike_encoder(config: PretrainConfig, stores: Sequence[Store]) -> list[str]:
    """A sentence where the encoder learnt from scans prepared otherwise."""
    try:
        card = read_card(find_model(config.encoder)) if config.encoder else {}
    except UnusableInput:
        return []  # another project's weight file; its import tells
    told = (unlike_store(card, s.preprocessing, config.encoder) for s in stores)
    return [text for text in dict.fromkeys(told) if text]


def _unlike_paper(wanted: PaperScans | None, stores: Sequence[Store]) -> list[str]:
    """A sentence for each store that is not prepared as the paper's scans are."""
    told = []
    for store in stores if wanted else ():
        assert wanted is not None
        made = store.preprocessing
        kinds = sorted({card.modality for card in store.cards})
        spacing = made.spacing_mm if wanted.spacing_mm else None
        if differs := wanted.differs(made.window_hu, spacing, kinds):
            command = wanted.command(
                [card.source for card in store.cards],
                [card.label_source for card in store.cards if card.label_source],
                str(store.path),
            )
            told.append(
                f"the paper ({wanted.source}) has {listed(differs)} in {store.path}; "
                f"make a store as the paper's with: {command}"
            )
    return told


def as_encoder_has(config: PretrainConfig, given: Mapping[str, Any]) -> PretrainConfig:
    """Tokens of a stride that the encoder to start from has: the nearest, with a note.

    A recipe counts on its own network; a vision transformer of patches of 16 voxels has
    no map of stride 8.
    """
    wanted = config.method_config.get("token_stride")
    if not config.encoder or "token_stride" in given or not isinstance(wanted, int):
        return config
    known = sorted({max(stride) for stride in _network(config).strides})
    if wanted in known:
        return config
    nearest = min(known, key=lambda stride: max(stride / wanted, wanted / stride))
    note = (
        f"the encoder has no map of stride {wanted}, so tokens are {nearest} voxels "
        "wide (--set method.token_stride=... to choose)."
    )
    return dataclasses.replace(
        config,
        method_config={**config.method_config, "token_stride": nearest},
        notes=(*config.notes, note),
    )


def as_slices(config: PretrainConfig, given: Mapping[str, Any]) -> PretrainConfig:
    """Crops as the network sees: one slice for a 2D one, volumes for a 3D one.

    Slices are twice as wide as the volumes they stand for, and turned within their
    plane only: tilted ones would leave an X-ray, which has no depth.
    """
    network = _network(config)
    flat = network.spatial_dims == 2
    made: dict[str, Any] = {}
    for key, value in config.method_config.items():
        if not (isinstance(value, list) and len(value) == 3) or key in given:
            continue
        z, y, x = value
        if key.endswith("size") and flat and z != 1:
            made[key] = [1, 2 * y, 2 * x]
        elif key.endswith("size") and z == 1 and network.size_divisor[0] > 1:
            made[key] = [min(y, x) // 2, y // 2, x // 2]
        elif key == "rotate_deg" and flat:
            made[key] = [z, 0.0, 0.0]
    sizes = [f"{k} {times(v)}" for k, v in made.items() if k.endswith("size")]
    sees = "2D and sees slices" if flat else "3D and sees volumes"
    note = f"{config.backbone['name']} is {sees}: {', '.join(sizes)}."
    return dataclasses.replace(
        config,
        method_config={**config.method_config, **made},
        notes=(*config.notes, note) if sizes else config.notes,
    )


def as_thick_slices(
    config: PretrainConfig, cases: Sequence[CaseRef], given: Mapping[str, Any]
) -> PretrainConfig:
    """Crops of scans of thick slices, where the network knows of them.

    A crop keeps about its number of voxels, and is about as long in mm across the
    slices as along them. Where slices are more than three times as thick as pixels are
    wide, crops turn within the slices only.
    """
    network, (spacing, shape) = _network(config), grid_of(cases)
    if min(shape) == 1:  # of pictures
        return config
    follows = bool(type(network).fitted({}, spacing, shape))
    uneven = follows and len(set(network.strides[-1])) > 1
    across, made = thick_axis(spacing), dict[str, Any]()
    for key, value in config.method_config.items():
        if not (isinstance(value, list) and len(value) == 3) or key in given:
            continue
        if key.endswith("size") and uneven and min(value) > 1:
            divisor = network.size_divisor
            volume = math.prod(value)
            made[key] = list(crop_like(volume, spacing, shape, divisor, divisor))
        elif key == "rotate_deg" and across is not None:
            made[key] = [n if a == across else 0.0 for a, n in enumerate(value)]
    changed = {k: v for k, v in made.items() if v != config.method_config[k]}
    if not changed:
        return config
    told = [
        f"method.{key}={','.join(f'{n:g}' for n in value)}"
        for key, value in changed.items()
    ]
    note = (
        f"slices are thick (voxels of {spacing_text(spacing)}), so crops are made for "
        f"them: {', '.join(told)} (--set to choose)."
    )
    return dataclasses.replace(
        config,
        method_config={**config.method_config, **changed},
        notes=(*config.notes, note),
    )


def fitted(config: PretrainConfig, cases: Sequence[CaseRef]) -> PretrainConfig:
    """A recipe's crop larger than nearly all scans is made smaller, with a note."""
    size = config.method_config.get("size")
    if not isinstance(size, list) or len(size) != 3:
        return config
    smaller = fitted_size(tuple(size), cases, _network(config).size_divisor)
    if smaller == tuple(size):
        return config
    note = (
        f"nine of ten scans fit into {times(smaller)} voxels, so crops have that "
        f"size instead of the recipe's {times(size)} (--set method.size=... to "
        "choose)."
    )
    return dataclasses.replace(
        config,
        method_config={**config.method_config, "size": list(smaller)},
        notes=(*config.notes, note),
    )


def from_data(config: PretrainConfig, cases: Sequence[CaseRef]) -> PretrainConfig:
    """Settings that the method takes from the data are kept with the run."""
    cls = METHODS.get(config.method)
    settings = cls.settled(config.method_config, cases)
    checked = to_dict(from_dict(cls.Config, settings, where=config.method))
    return dataclasses.replace(config, method_config=checked)


def whole_turns(config: PretrainConfig, turns: int) -> PretrainConfig:
    """A batch that modalities share evenly."""
    wanted = config.training.batch_size
    if turns < 2 or wanted % turns == 0:
        return config
    size = -(-wanted // turns) * turns
    note = (
        f"{turns} modalities share every batch, so it holds {size} samples instead of "
        f"{wanted}."
    )
    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, batch_size=size),
        notes=(*config.notes, note),
    )


def fitted_size(size: Index, cases: Sequence[CaseRef], divisor: Index) -> Index:
    """The smallest legal crop that holds nine of ten scans, at most ``size``.

    Args:
        size: The recipe's crop (z, y, x).
        cases: What is learnt from.
        divisor: Sides must be multiples of this.
    """
    shapes = np.array([case.card.shape for case in cases])
    needed = np.percentile(shapes, 90, axis=0, method="lower")
    whole = [int(-(-n // m) * m) for n, m in zip(needed, divisor, strict=True)]
    z, y, x = (min(old, new) for old, new in zip(size, whole, strict=True))
    return z, y, x


def _fitted_network(config: PretrainConfig, cases: Sequence[CaseRef]) -> dict[str, Any]:
    """The backbone's settings, from the scans or as the encoder has them."""
    if not config.encoder:
        return fitted_backbone(config.backbone, cases)
    own = own_backbone(config.encoder)
    if own is None or own["name"] != config.backbone["name"]:
        return config.backbone
    channels = {"in_channels": config.backbone["in_channels"]}
    return {"name": own["name"], **own["config"], **channels}


def _network(config: PretrainConfig) -> Backbone:
    rest = {k: v for k, v in config.backbone.items() if k != "name"}
    return build(str(config.backbone["name"]), rest)


# Which cases are seen, and how large they are against the crops.


def cases_of(config: PretrainConfig, stores: Sequence[Store]) -> Sequence[CaseRef]:
    """What a pretraining sees, without the labels that it may not use.

    Raises:
        UnusableInput: As ``chosen_cases``.
    """
    cases = chosen_cases(stores, config.without_splits, config.without_cases)
    if config.labels_of is None:
        return cases
    known = set(config.labels_of)
    return tuple(
        case if case.card.id in known else CaseRef(case.store, case.card.unlabelled())
        for case in cases
    )


def chosen_cases(
    stores: Sequence[Store],
    without_splits: Sequence[str],
    without_cases: Sequence[str] = (),
) -> Sequence[CaseRef]:
    """Every case of the stores but those left out, in a fixed order.

    Args:
        stores: Open.
        without_splits: Cases of these splits are left out,
        without_cases: and those of these names.

    Raises:
        UnusableInput: None is left, or their channels differ.
    """
    left_out = set(without_cases)
    cases: Sequence[CaseRef]
    if any(store.table is not None for store in stores):
        cases = StoredCases.of(stores, without_splits, left_out)
    else:
        cases = tuple(
            CaseRef(store, card)
            for store in stores
            for card in store.cards
            if card.split not in without_splits and card.id not in left_out
        )
    paths = ", ".join(str(store.path) for store in stores)
    if not cases:
        raise UnusableInput(
            f"no case to learn from in {paths}: all {sum(len(s) for s in stores)} are "
            f"left out ({', '.join(without_splits) or 'by name'})."
        )
    if isinstance(cases, StoredCases):
        channels = set(np.unique(cases.column("channels")).tolist())
    else:
        channels = {case.card.channels for case in cases}
    if len(channels) > 1:
        raise UnusableInput(
            f"cases with {listed(sorted(channels))} channels in "
            f"{paths} cannot be mixed in one pretraining."
        )
    return cases


def padding_note(specs: dict[str, ViewSpec], cases: Sequence[CaseRef]) -> str:
    """A sentence when most of a typical crop lies outside its scan, else empty."""
    shapes = np.array([case.card.shape for case in cases])
    median = np.median(shapes, axis=0)
    for name, spec in specs.items():
        if isinstance(spec.place, Whole) or spec.spacing_mm is not None:
            continue
        share = float(np.prod(np.minimum(median / np.array(spec.size), 1.0)))
        if share < 0.5:
            return (
                f"views {name!r} of {times(spec.size)} voxels are larger than most "
                f"scans (median {times(median)}): about {1 - share:.0%} of a view is "
                "padding, which costs time. Smaller crops: --set method.size=z,y,x"
            )
    return ""


def shares_note(feed: Feed) -> str:
    """What share of the samples each modality gives; empty where there is only one.

    Stages that see the same scans are named together.
    """
    stages: dict[str, list[str]] = {}
    for groups, shares in feed.modality_shares():
        text = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
        if len(shares) > 1:
            stages.setdefault(text, []).append(groups[0])
    if not stages:
        return ""
    parts = [
        text if len(stages) == 1 else f"{listed(groups)}: {text}"
        for text, groups in stages.items()
    ]
    return f"share of each modality in the samples: {'; '.join(parts)}."


# Which places of other patients the matched views lie at.


class MissingPairs(UnusableInput):
    """A store has no table of matching places, or one of other scans.

    Attributes:
        store: Its folder.
    """

    def __init__(self, message: str, store: Path) -> None:
        super().__init__(message)
        self.store = store


def find_partners(
    method: Method, stores: Sequence[Store], cases: Sequence[CaseRef], seed: int
) -> Pairing | None:
    """The partners a method wants; None where it wants none.

    Raises:
        UnusableInput: Matches are wanted and a store has no table of them, or one
            of other scans, or none of its matches is good enough.
    """
    wanted = method.pairs_wanted()
    if wanted is None or wanted.kind == "same":
        return None
    if wanted.kind == "dataset":
        return SameDataset(cases, wanted.same_share)
    if wanted.kind == "random":
        return random_partners(cases, seed)
    tables = {store.path: table_of(store) for store in stores}
    partners = partners_of(
        [(case.store.path, case.card.id) for case in cases],
        tables,
        wanted.least_score,
        wanted.largest_cycle_mm,
        wanted.best_share,
    )
    if len(partners) == 0:
        raise UnusableInput(_no_match(wanted, list(tables.values())))
    return partners


def _no_match(wanted: PairsWanted, tables: Sequence[PairTable]) -> str:
    """Why no match is used, and what to do, in a sentence."""
    rows = np.concatenate([table.rows for table in tables])
    best, nearest = (
        (float(rows["score"].max()), float(rows["cycle_mm"].min()))
        if len(rows) else (math.nan, math.nan)
    )  # fmt: skip
    back = wanted.largest_cycle_mm
    led = f" and leads back within {back:g} mm (the nearest: {nearest:.1f})"
    return (
        f"no match of the table of matching places is as similar as "
        f"{wanted.least_score:g} (the best: {best:.3f}){led if back else ''}; lower "
        "the limits with --set method.least_score=... and method.largest_cycle_mm=... "
        "(0: any), or align with a longer trained embedding."
    )


def table_of(store: Store) -> PairTable:
    """The store's table of matching places.

    Raises:
        MissingPairs: There is none, or it was made of other scans.
    """
    table = read_pairs(store.path)
    make = f"homolog align {store.path} --encoder RUN"
    if table is None:
        raise MissingPairs(
            f"{store.path} has no table of matching places, which aligned crops need. "
            f"Make it with a trained anatomical embedding: {make}, or here with "
            f"--aligner RUN (RUN: homolog pretrain anatomical_embedding {store.path} "
            "--out RUN). Or train without it: --set method.pairs=random or "
            "method.pairs=same",
            store.path,
        )
    if table.card.get("store_hash") != store.hash:
        raise MissingPairs(
            f"the table of matching places of {store.path} was made of other scans "
            f"than the store holds now; make it again: {make}, or here with --aligner "
            "RUN.",
            store.path,
        )
    return table


def partners_note(partners: Pairing, cases: Sequence[CaseRef]) -> str:
    """One sentence for the log, or empty."""
    if not isinstance(partners, Partners):
        return ""
    text = f"{len(partners)} matching places in {len(cases)} scans"
    if partners.lonely:
        text += f"; {partners.lonely} scans have none and are paired with themselves"
    return text + "."
