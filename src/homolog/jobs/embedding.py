"""Dense features of scan files, as a job: computed once, found again by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homolog.config import check, from_dict
from homolog.distributed import choose_device
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request
from homolog.features.embed import DenseEncoder, EmbedConfig, embed_scan
from homolog.features.files import array_path, find_features, open_features, read_card
from homolog.geometry.places import AXES_NAMED
from homolog.jobs.base import ending, paths, taken
from homolog.model_files.encoder import load_encoder
from homolog.scans.files import read_scan, scan_hash
from homolog.scans.problems import problem_of
from homolog.scans.volume import FeatureMap, Volume
from homolog.training.stepping import is_out_of_memory
from homolog.words import times

_DEFAULTS: Mapping[str, Any] = {
    "encoder": ..., "scans": ..., "folder": ..., "strides": None, "window": None,
    "overlap": 0.5, "precision": "auto", "batch_size": 1, "backbone": None,
    "device": "auto",
}  # fmt: skip


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Features of scans; those that lie in ``config["folder"]`` are not made again.

    Args:
        config: ``encoder`` (run, model folder or weight file), ``scans``, ``folder``;
            ``strides`` and ``window`` (None: the model's), ``overlap``, ``precision``,
            ``batch_size``, ``backbone`` (of a weight file), ``device``.
        folder: Not used.

    Returns:
        ``features``: one entry per scan (see ``entry_of``); ``failed`` (scan, reason),
        and ``stopped``.
    """
    asked = taken(config, "embed", _DEFAULTS)
    encoder = encoder_of(
        Path(asked["encoder"]),
        {
            "strides": tuple(asked["strides"] or ()),
            "window": asked["window"],
            "overlap": asked["overlap"],
            "precision": asked["precision"],
            "batch_size": asked["batch_size"],
        },
        asked["device"],
        asked["backbone"],
    )
    scans = paths(asked["scans"], "scan")
    return (yield from ending(embed_scans(scans, Path(asked["folder"]), encoder)))


def encoder_of(
    source: Path,
    settings: Mapping[str, Any],
    device: str,
    backbone: str | None = None,
) -> DenseEncoder:
    """The encoder of a run, model folder or weight file, ready to embed.

    Args:
        source: Where it lies.
        settings: Fields of EmbedConfig.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        backbone: Network of a weight file that does not say it.
    """
    config = from_dict(EmbedConfig, settings, where="embed")
    check(config)
    loaded = load_encoder(source, backbone)
    return DenseEncoder.of(loaded, config, choose_device(device))


def embed_scans(
    scans: Sequence[Path], folder: Path, encoder: DenseEncoder
) -> Job[dict[str, Any]]:
    """Features of scan after scan; one of several that fails does not stop the others.

    Returns:
        ``features``: entries in the order of the scans; ``failed`` (scan, reason);
        ``out``; ``stopped``, with the entries made until then.

    Raises:
        UnusableInput: No scan could be read; of a single scan, its own error.
        JobError: A single window does not fit into memory.
    """
    entries: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    result: dict[str, Any] = {"features": entries, "failed": failed, "out": str(folder)}
    yield from encoder.warn()
    for number, path in enumerate(scans):
        request = yield Progress("scans", number, len(scans), path.name)
        if request is Request.STOP:
            return {**result, "stopped": True}
        try:
            entry = yield from _one_scan(path, folder, encoder)
        except JobError:
            raise  # the window's or the disk's fault, not the scan's
        except Exception as error:
            if len(scans) == 1:
                raise
            reason = problem_of(error).text.removeprefix(f"{path}: ")
            failed.append({"scan": str(path), "reason": reason})
            yield Note(f"{path}: {reason}", "warning")
            continue
        if entry is None:
            return {**result, "stopped": True}
        entries.append(entry)
    yield Progress("scans", len(scans), len(scans))
    if failed and not entries:
        first = failed[0]
        text = f"none of {len(scans)} scans could be embedded; first {first['scan']}: "
        raise UnusableInput(text + first["reason"])
    return {**result, "stopped": False}


def _one_scan(
    path: Path, folder: Path, encoder: DenseEncoder
) -> Job[dict[str, Any] | None]:
    """The entry of one scan; None if stopped."""
    key = scan_hash(path)
    card = find_features(folder, key, encoder.key)
    reused = card is not None
    if card is None:
        made = yield from features_of(read_scan(path), path, encoder, folder)
        if made is None:
            return None
        card = find_features(folder, key, encoder.key)
    assert card is not None
    return entry_of(path, card, reused=reused)


def features_of(
    scan: Volume, path: Path, encoder: DenseEncoder, folder: Path
) -> Job[FeatureMap | None]:
    """Features of a scan file, computed unless ``folder`` has them; None if stopped.

    Raises:
        JobError: A single window does not fit into memory.
    """
    try:
        features: FeatureMap | None = yield from embed_scan(
            scan, encoder, folder=folder, scan_hash=scan_hash(path)
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(
            f"not enough memory on {encoder.device} for a window of "
            f"{times(encoder.window)} voxels; take a smaller window, or another device."
        ) from error
    return features


def entry_of(scan: Path, card_path: Path, *, reused: bool) -> dict[str, Any]:
    """What is told about one scan's features, JSON types."""
    card, features = read_card(card_path), open_features(card_path)
    return {
        "scan": str(scan),
        "features": str(array_path(card_path)),
        "card": str(card_path),
        "shape": list(card.shape),
        "size": card.size,
        "stride": list(card.stride),
        "spacing_mm": list(features.affine.spacing_mm),
        "affine": card.affine,
        "axes": AXES_NAMED,
        "scan_hash": card.scan_hash,
        "encoder_id": card.encoder_id,
        "reused": reused,
    }
