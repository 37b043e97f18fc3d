"""Look after trained networks: check them, take in other people's, hand ours out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.model_files.card import CARD
from homolog.model_files.decoder import (
    FILE,
    STEM,
    SavedDecoder,
    decoder_card,
    read_decoder,
)
from homolog.model_files.encoder import LoadedEncoder, load_encoder, load_foreign
from homolog.model_files.folder import find_model, load_model, save_model, write_tensors
from homolog.model_files.foreign import Foreign, read_foreign
from homolog.model_files.published import published_lines, weight_file
from homolog.nn.decoders import foreign_decoder, suited_decoder
from homolog.words import counted, listed
from homolog.writing import replacing, write_json


def hint(
    backbone: str | None, settings: Mapping[str, Any], below: str | None = None
) -> dict[str, Any] | None:
    """What is said of a weight file of another project; the rest is read off it.

    Args:
        backbone: Its network.
        settings: Of that network.
        below: What its names begin with, where the file holds several networks.
    """
    told = {"name": backbone, "config": dict(settings), "below": below}
    return {k: v for k, v in told.items() if v} or None


def check_model(source: Path, network: Mapping[str, Any] | None) -> dict[str, Any]:
    """Verify a run, model folder or weight file, and tell what it holds.

    Returns:
        ``source``, ``encoder_id``, ``weights`` (their number), ``report`` (what
        matched), ``card``, and ``lines`` for people.
    """
    source = _file_of(source)
    decoder: SavedDecoder | None = None
    if source.is_file() and not (source.parent / CARD).is_file():
        loaded, file = load_foreign(source, network, allow_dropped=True)
        decoder, told, aside = _of_foreign(loaded, file)
        card = {**loaded.card, **told}
    else:
        # checksums of the weights it names
        card = load_model(find_model(source)).card
        if "backbone" not in card and network is None:
            return _without_encoder(source, card)
        loaded, aside = load_encoder(source, network, allow_dropped=True), []
        card, decoder = loaded.card, _decoder(loaded)
    numbers = sum(p.numel() for p in loaded.backbone.parameters())
    lines = [
        f"{card.get('kind')} {card['backbone']['name']}, {numbers / 1e6:.2f} M "
        f"weights, id {loaded.encoder_id}",
        *loaded.report.lines(),
    ]
    if loaded.report.dropped:
        lines.append(f"would be dropped: {loaded.report.dropped}")
    if decoder is not None:
        lines.append(decoder_words(card))
    lines += [*aside, *published_lines(card), *_facts(card)]
    return {
        "source": str(source),
        "encoder_id": loaded.encoder_id,
        "weights": numbers,
        "report": loaded.report.to_dict(),
        "card": card,
        "lines": lines,
    }


def _file_of(source: Path) -> Path:
    """The weight file of a folder as hubs lay them out; else the source itself."""
    if source.is_dir() and not any(
        (place / CARD).is_file() for place in (source, source / "model")
    ):
        return weight_file(source) or source
    return source


def _of_foreign(
    loaded: LoadedEncoder, file: Foreign
) -> tuple[SavedDecoder | None, dict[str, Any], list[str]]:
    """The decoder of another project's file, what the card says of it, and the rest."""
    found = foreign_decoder(file.tensors, loaded.backbone)
    beside = file.path.with_suffix(f".{FILE}")
    if found is None and beside.is_file():
        return SavedDecoder(read_foreign(beside).tensors), {}, []
    aside = _aside(loaded, file, {} if found is None else found.state)
    if found is None:
        return None, {}, aside
    made = suited_decoder(loaded.backbone, found.classes or 1)
    card = {
        STEM: {
            **decoder_card(made),
            "parameters": sum(v.numel() for v in found.state.values()),
            "lacking": len(found.missing),
        }
    }
    if found.left_over:
        first = found.left_over[0]
        aside.append(
            f"of its decoder {counted(len(found.left_over), 'tensor')} have no place "
            f"here (first {first})"
        )
    return SavedDecoder(dict(found.state)), card, aside


def _aside(
    loaded: LoadedEncoder, file: Foreign, decoder: Mapping[str, Any]
) -> list[str]:
    """What of the file is taken for neither encoder nor decoder."""
    prefix = loaded.report.prefix
    outside = [n for n in file.tensors if not n.startswith(prefix)]
    left = len(outside) + len(loaded.report.unexpected) - len(decoder)
    if left <= 0:
        return []
    parts = dict.fromkeys(
        [_first_word(name, prefix) for name in outside]
        + [name.partition(".")[0] for name in loaded.report.unexpected]
    )
    which = "" if decoder else f" ({listed(parts, most=6)})"
    return [
        f"left aside: {counted(left, 'tensor')} of heads, copies and the like{which}"
    ]


def _first_word(name: str, prefix: str) -> str:
    """Where a name leaves the words of a prefix."""
    words = name.split(".")
    shared = 0
    for own, other in zip(words, prefix.split("."), strict=False):
        if own != other:
            break
        shared += 1
    return words[min(shared, len(words) - 1)]


def decoder_words(card: Mapping[str, Any]) -> str:
    """What a model's card says of its decoder; empty where it has none."""
    told = card.get("decoder")
    if not told:
        return ""
    lacking = told.get("lacking", 0)
    part = f", without {counted(lacking, 'tensor')} of it" if lacking else ""
    return (
        f"with a {told.get('kind')} decoder, {told.get('width')} wide, "
        f"{told.get('parameters', 0) / 1e6:.2f} M weights{part}"
    )


def _decoder(loaded: LoadedEncoder) -> SavedDecoder | None:
    """Read and verified; None where there is none."""
    return None if loaded.folder is None else read_decoder(loaded.folder, loaded.card)


def _without_encoder(source: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """What ``check_model`` tells of a head on intensities alone."""
    return {
        "source": str(source),
        "encoder_id": "",
        "weights": 0,
        "report": {},
        "card": dict(card),
        "lines": [f"{card.get('kind')} without an encoder", *_facts(card)],
    }


def _facts(card: Mapping[str, Any]) -> list[str]:
    told = ("title", "label_names", "steps", "complete", "preprocessing", "licence",
            "deviations")  # fmt: skip
    return [
        f"{key}: {card[key]}"
        for key in told
        if card.get(key) not in (None, {})
        and (key != "preprocessing" or "published" not in card)
    ]


def import_model(
    source: Path,
    out: Path,
    network: Mapping[str, Any] | None,
    *,
    allow_dropped: bool = False,
) -> dict[str, Any]:
    """Turn a weight file of another project into a model folder.

    Returns:
        ``model``, ``encoder_id``, and ``lines`` for people.

    Raises:
        UnusableInput: ``out`` exists, too little of the network was found, weights are
            no numbers, or something would be dropped that was not allowed to be.
    """
    if out.exists():
        raise UnusableInput(f"{out} exists; choose another --out.")
    source = _file_of(source)
    decoder: SavedDecoder | None
    told: dict[str, Any] = {}
    aside: list[str] = []
    if source.is_file() and not (source.parent / CARD).is_file():
        loaded, file = load_foreign(source, network, allow_dropped=allow_dropped)
        decoder, told, aside = _of_foreign(loaded, file)
    else:
        loaded = load_encoder(source, network, allow_dropped=allow_dropped)
        decoder = _decoder(loaded)
    lines = loaded.report.lines()
    if loaded.report.dropped:
        lines.append(f"dropped: {loaded.report.dropped}")
    card = {
        "licence": "unknown: that of the file it was imported from",
        **{k: v for k, v in loaded.card.items() if k not in ("weights", "sha256")},
        **told,
        "kind": "encoder",
        "source": source.name,
        "report": loaded.report.to_dict(),
    }
    lines += [*aside, *published_lines(card)]
    if decoder is not None and (words := decoder_words(card)):
        lines.append(words)
    lines.append(f"licence: {card['licence']}")
    extra = None if decoder is None else {STEM: decoder.state}
    save_model(out, loaded.backbone.state_dict(), card, extra=extra)
    return {
        "model": str(out),
        "encoder_id": loaded.encoder_id,
        "backbone": card["backbone"],
        "lines": lines,
    }


def export_model(source: Path, out: Path) -> dict[str, Any]:
    """Write an encoder as one ``.safetensors`` file with its card beside it.

    A decoder that was trained with it is written beside it, as
    ``NAME.decoder.safetensors``.

    Returns:
        ``file`` and ``card``; and ``decoder``, where there is one.

    Raises:
        UnusableInput: Another ending, or no model there.
    """
    if out.suffix != ".safetensors":
        raise UnusableInput(f"--out must end in .safetensors, got {out}.")
    loaded = load_encoder(source)
    with replacing(out) as half:
        write_tensors(half, loaded.backbone.state_dict())
    written = {"file": str(out), "card": str(out.with_suffix(".json"))}
    decoder = _decoder(loaded)
    if decoder is not None:
        beside = out.with_suffix(f".{FILE}")
        with replacing(beside) as half:
            write_tensors(half, decoder.state)
        written[STEM] = str(beside)
    card = {**loaded.card, "encoder_id": loaded.encoder_id}
    write_json(out.with_suffix(".json"), card)
    return written
