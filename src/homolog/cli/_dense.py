"""What commands that read dense features share: the encoder, the scans, features."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from homolog.config import ConfigError

if TYPE_CHECKING:
    from homolog.features.embed import DenseEncoder
    from homolog.scans.volume import FeatureMap, Volume


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Dense:
    """What the options of ``dense_options`` say.

    Attributes:
        encoder: Run, model folder or weight file; None where it may be left out.
        backbone: Network of a weight file that does not say it.
        strides: Feature maps to join; empty: what the model says.
        window: Voxels (z, y, x); None: by the training's.
        overlap: Shared part of neighbouring windows.
    """

    encoder: Path | None
    backbone: str | None
    strides: tuple[int, ...]
    window: tuple[int, int, int] | None
    overlap: float

    @classmethod
    def taken(cls, given: dict[str, Any]) -> Dense:
        """The options, taken out of a command's arguments."""
        strides, window = given.pop("strides"), given.pop("window")
        return cls(
            given.pop("encoder"),
            given.pop("backbone"),
            tuple(whole_numbers(strides, "--strides")) if strides else (),
            window_of(window),
            given.pop("overlap"),
        )

    def open(self, device: str) -> DenseEncoder:
        """The encoder, ready to embed."""
        from homolog.jobs.embedding import encoder_of

        assert self.encoder is not None
        settings = {
            "strides": self.strides, "window": self.window, "overlap": self.overlap,
        }  # fmt: skip
        return encoder_of(self.encoder, settings, device, self.backbone)


def dense_options(encoder_help: str = "") -> Callable[[F], F]:
    """Add ``--encoder`` and how its window slides; they arrive as one ``dense``.

    Args:
        encoder_help: More about an encoder that may be left out; empty: it may not.
    """
    options = (
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
        click.option("--encoder", required=not encoder_help, metavar="RUN",
                     type=click.Path(path_type=Path),
                     help="A pretraining run, a model folder or a weight file."
                          + encoder_help),
    )  # fmt: skip

    def decorate(function: F) -> F:
        @wraps(function)
        def gathered(**given: Any) -> Any:
            return function(dense=Dense.taken(given), **given)

        for option in options:
            gathered = option(gathered)
        return cast("F", gathered)

    return decorate


def features_option(function: F) -> F:
    """Add ``--features``."""
    return click.option(
        "--features",
        default=None,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where feature maps are kept and found again.  [default: the user's "
        "cache]",
    )(function)


def features_of(
    scan: Volume, path: Path, encoder: DenseEncoder, folder: Path
) -> Generator[Any, Any, FeatureMap]:
    """Features of a scan file, computed unless ``folder`` has them.

    Raises:
        KeyboardInterrupt: The job was told to stop.
    """
    from homolog.jobs import embedding

    features = yield from embedding.features_of(scan, path, encoder, folder)
    if features is None:
        raise KeyboardInterrupt
    return features


def run(job: Generator[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Follow a job on the terminal; its result, which gains the job's ``warnings``."""
    from homolog.cli._run import follow
    from homolog.errors import JobError
    from homolog.events import Finished

    def with_result() -> Generator[Any, Any, None]:
        warnings: list[str] = []
        result = yield from _warned(job, warnings)
        told = result.get("warnings") or []
        new = [text for text in warnings if text not in told]
        yield Finished({**result, "warnings": [*told, *new]})

    last = follow(with_result())
    if not isinstance(last, Finished):
        raise JobError("the job did not come to its end.")
    return last.result


def _warned(
    job: Generator[Any, Any, dict[str, Any]], warnings: list[str]
) -> Generator[Any, Any, dict[str, Any]]:
    """The job; its warnings are kept too."""
    from homolog.events import Note

    request = None
    while True:
        try:
            event = job.send(request)
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result
        if isinstance(event, Note) and event.level == "warning":
            warnings.append(event.text)
        request = yield event


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
