"""What embed, similarity and match share: the encoder, the scans, their features."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from homolog.config import ConfigError

if TYPE_CHECKING:
    from homolog.data.volume import FeatureMap, Volume
    from homolog.tasks._dense import DenseEncoder

F = TypeVar("F", bound=Callable[..., Any])


def dense_options(function: F) -> F:
    """Add ``--encoder`` and how its window slides."""
    for decorate in (
        click.option("--overlap", type=click.FloatRange(0, 0.9), default=0.5,
                     show_default=True, help="Shared part of neighbouring windows."),
        click.option("--window", default=None, metavar="Z,Y,X",
                     help="Window in voxels.  [default: a third larger than in "
                          "training]"),
        click.option("--strides", default=None, metavar="S,S...",
                     help="Join the feature maps of these strides, e.g. 2,8.  "
                          "[default: what the model says]"),
        click.option("--backbone", default=None, metavar="NAME",
                     help="Network of a weight file that does not say it."),
        click.option("--encoder", required=True, metavar="RUN",
                     type=click.Path(path_type=Path),
                     help="A pretraining run, a model folder or a weight file."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def open_encoder(
    source: Path,
    strides: str | None,
    window: str | None,
    overlap: float,
    device: str,
    backbone: str | None = None,
) -> DenseEncoder:
    """The encoder behind ``--encoder``, ready to embed."""
    from homolog.study.embedding import encoder_of

    settings = {
        "strides": whole_numbers(strides, "--strides") if strides else (),
        "window": window_of(window),
        "overlap": overlap,
    }
    return encoder_of(source, settings, device, backbone)


def features_of(
    scan: Volume, path: Path, encoder: DenseEncoder, folder: Path
) -> Generator[Any, Any, FeatureMap]:
    """Features of a scan file, computed unless ``folder`` has them.

    Raises:
        KeyboardInterrupt: The job was told to stop.
    """
    from homolog.study import embedding

    features = yield from embedding.features_of(scan, path, encoder, folder)
    if features is None:
        raise KeyboardInterrupt
    return features


def run(job: Generator[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Follow a job on the terminal; its result."""
    from homolog.cli._follow import follow
    from homolog.errors import JobError
    from homolog.events import Finished

    def with_result() -> Generator[Any, Any, None]:
        result = yield from job
        yield Finished(result)

    last = follow(with_result())
    if not isinstance(last, Finished):
        raise JobError("the job did not come to its end.")
    return last.result


def existing(path: Path) -> Path:
    """The path, if there is something.

    Raises:
        FileNotFoundError: There is nothing.
    """
    if not path.exists():
        raise FileNotFoundError(2, "there is no such file or folder", str(path))
    return path


def window_of(text: str | None) -> tuple[int, int, int] | None:
    """``"64,96,96"`` -> three voxel counts; None stays."""
    if text is None:
        return None
    numbers = whole_numbers(text, "--window")
    if len(numbers) != 3:
        raise ConfigError(f"--window must be three numbers z,y,x, got {text!r}.")
    return numbers[0], numbers[1], numbers[2]


def whole_numbers(text: str, what: str) -> list[int]:
    """``"2,8"`` -> whole numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{what} must be whole numbers with commas, got {text!r}."
        ) from None
