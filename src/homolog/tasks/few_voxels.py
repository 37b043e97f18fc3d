"""The few-voxels task: a first segmentation from a handful of painted voxels.

``fit`` makes a head in milliseconds from features that are there already; a slice and
then the scan follow. What fits and predicts (``_few_*.py``) knows neither torch nor Qt;
this file is the task as ``homolog predict`` sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from homolog.config import from_dict
from homolog.data.feature_files import kept_features
from homolog.data.preprocess import Preprocessing
from homolog.data.scan_io import scan_hash
from homolog.data.volume import FeatureMap, LabelMap, Volume
from homolog.events import Job, Note
from homolog.tasks._base import Task, Trained
from homolog.tasks._few_files import FewNetwork, open_few
from homolog.tasks._few_predict import predict_volume
from homolog.tasks._few_scan import few_scan
from homolog.tasks._few_settings import FewConfig
from homolog.tasks.embed import Embed

if TYPE_CHECKING:
    import torch

    from homolog.model_files import LoadedModel


class FewVoxels(Task):
    """Logistic regression or a vote of neighbours on dense features."""

    Config: ClassVar[type] = FewConfig
    title: ClassVar[str] = "Segmentation from a few painted voxels"

    @classmethod
    def opened(
        cls, loaded: LoadedModel, device: torch.device, precision: str | None
    ) -> tuple[FewVoxels, Trained]:
        """A saved few-voxel model, see ``open_few``."""
        return cls(FewConfig()), open_few(loaded, device, precision)

    def run(self, volume: Volume, **inputs: Any) -> Job[LabelMap | None]:
        """Label a scan on its own grid.

        Args:
            volume: A scan as stored in its file.
            inputs: ``model``: Trained. ``overlap``: of the encoder's windows.
                ``modality``: take the scan for this one. ``labels``: painted voxels
                (LabelMap) that are kept. ``flips`` is told to be of no use.

        Returns:
            Labels with the scan's own affine; None when told to stop.

        Raises:
            UnusableInput: Another number of channels, painted labels of another grid.
        """
        model: Trained = inputs["model"]
        network = model.network
        assert isinstance(network, FewNetwork)
        modality: str | None = inputs.get("modality")
        for sentence in notes_of(model, volume, modality, inputs.get("flips", ())):
            yield Note(sentence, "warning")
        recipe = from_dict(
            Preprocessing, model.card.get("preprocessing", {}), where="model.json"
        )
        if modality is not None:
            recipe = replace(recipe, modality=modality)
        features: FeatureMap | None = None
        if network.dense is not None:
            dense = replace(network.dense, preprocessing=recipe)
            if inputs.get("overlap") is not None:
                config = replace(dense.config, overlap=float(inputs["overlap"]))
                dense = replace(dense, config=config)
            features = yield from _features(volume, dense)
            if features is None:
                return None
        scan = few_scan(volume, features, recipe)
        result = yield from predict_volume(network.head, scan, inputs.get("labels"))
        return None if result is None else result.labels


def notes_of(
    model: Trained, volume: Volume, modality: str | None, flips: Sequence[int]
) -> list[str]:
    """Sentences on what makes a scan unlike those that were painted.

    Args:
        model: With its spec.
        volume: The scan.
        modality: What the user says it is, whatever its file says.
        flips: Mirrorings asked for.
    """
    found = []
    spec: Mapping[str, Any] = model.spec
    known = [m for m in spec["modalities"] if m != "OTHER"]
    own = modality or volume.modality
    if known and own != "OTHER" and own not in known:
        found.append(
            f"the model was painted on {', '.join(known)}, but {volume.name!r} is "
            f"{own}: its values mean something else, and the labels will hardly be "
            "right."
        )
    if flips:
        found.append("a few-voxel model does not average over mirrorings.")
    return found


def _features(volume: Volume, dense: Any) -> Job[FeatureMap | None]:
    """The scan's features: from the user's cache where the scan is a file."""
    source = volume.meta.get("source")
    embed = Embed(dense.config)
    if not source or not Path(source).exists():
        made: FeatureMap | None = yield from embed.run(volume, encoder=dense)
        return made
    with kept_features() as folder:
        kept: FeatureMap | None = yield from embed.run(
            volume, encoder=dense, folder=folder, scan_hash=scan_hash(Path(source))
        )
    return kept
