"""Look after trained networks: check them, take in other people's, hand ours out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.model_files.decoder import FILE, STEM, SavedDecoder, read_decoder
from homolog.model_files.encoder import LoadedEncoder, load_encoder
from homolog.model_files.folder import find_model, load_model, save_model, write_tensors
from homolog.writing import replacing, write_json


def hint(backbone: str | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which network a weight file of another project holds.

    Raises:
        ConfigError: Settings without a network.
    """
    if backbone is None:
        if settings:
            raise ConfigError("--set needs --backbone.")
        return None
    return {"name": backbone, "config": dict(settings)}


def check_model(source: Path, network: Mapping[str, Any] | None) -> dict[str, Any]:
    """Verify a run, model folder or weight file, and tell what it holds.

    Returns:
        ``source``, ``encoder_id``, ``weights`` (their number), ``report`` (what
        matched), ``card``, and ``lines`` for people.
    """
    if not source.is_file():
        # checksums of the weights it names
        card = load_model(find_model(source)).card
        if "backbone" not in card and network is None:
            return _without_encoder(source, card)
    loaded = load_encoder(source, network, allow_dropped=True)
    card = loaded.card
    numbers = sum(p.numel() for p in loaded.backbone.parameters())
    lines = [
        f"{card.get('kind')} {card['backbone']['name']}, {numbers / 1e6:.2f} M "
        f"weights, id {loaded.encoder_id}",
        *loaded.report.lines(),
    ]
    if loaded.report.dropped:
        lines.append(f"would be dropped: {loaded.report.dropped}")
    if _decoder(loaded) is not None:
        lines.append(decoder_words(card))
    lines += _facts(card)
    return {
        "source": str(source),
        "encoder_id": loaded.encoder_id,
        "weights": numbers,
        "report": loaded.report.to_dict(),
        "card": card,
        "lines": lines,
    }


def decoder_words(card: Mapping[str, Any]) -> str:
    """What a model's card says of its decoder; empty where it has none."""
    told = card.get("decoder")
    if not told:
        return ""
    return (
        f"with a {told.get('kind')} decoder, {told.get('width')} wide, "
        f"{told.get('parameters', 0) / 1e6:.2f} M weights"
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
    return [f"{key}: {card[key]}" for key in told if card.get(key) not in (None, {})]


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
    loaded = load_encoder(source, network, allow_dropped=allow_dropped)
    lines = loaded.report.lines()
    if loaded.report.dropped:
        lines.append(f"dropped: {loaded.report.dropped}")
    card = {
        **{k: v for k, v in loaded.card.items() if k not in ("weights", "sha256")},
        "kind": "encoder",
        "source": source.name,
        "report": loaded.report.to_dict(),
        "licence": "unknown: that of the file it was imported from",
    }
    decoder = _decoder(loaded)
    extra = None if decoder is None else {STEM: decoder.state}
    save_model(out, loaded.backbone.state_dict(), card, extra=extra)
    return {
        "model": str(out),
        "encoder_id": loaded.encoder_id,
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
