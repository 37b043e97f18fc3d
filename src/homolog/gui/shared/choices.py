"""What a user chooses from: models, stores, devices; and the same as a command."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from homolog.errors import JobError, UnusableInput
from homolog.events import stopped_words
from homolog.json_files import object_or_none
from homolog.label_names import (
    NONE,
    findings_of,
    has_several,
    holds_nothing,
    says_none,
)
from homolog.model_files.card import CARD, learnt_of, read_card
from homolog.model_files.facts import licence_words
from homolog.model_files.library import LIBRARY, SHIPPED, models_below, shipped_models
from homolog.runs.jobs import command_words
from homolog.runs.run import find_runs
from homolog.store.card import Card, box_name
from homolog.store.learnt_spacing import Learnt
from homolog.store.preprocess import Preprocessing
from homolog.store.splits import subject_count
from homolog.store.store import Store
from homolog.words import (
    counted,
    duration,
    human_bytes,
    lengths_text,
    listed,
    spacing_text,
    volume_text,
)
from homolog.writing import make_folder, write_json

# Actions of the window as command lines, quoted for the shell of this machine.


def quoted(words: Sequence[str]) -> str:
    """Words as one line for the shell of this machine."""
    if os.name == "nt":
        return subprocess.list2cmdline(words)
    return shlex.join(words)


def predict_command(config: Mapping[str, Any]) -> str:
    """The ``homolog predict`` line of a ``predict`` job's configuration."""
    return quoted(command_words("predict", config))


def length_words(training: dict[str, Any]) -> list[str]:
    """``--steps`` or ``--minutes``; what it says is taken out of ``training``."""
    minutes, steps = training.get("minutes"), training.get("steps")
    if minutes:
        del training["minutes"]
        return ["--minutes", f"{minutes:g}"]
    if steps is not None:
        training.pop("minutes", None)
        del training["steps"]
        return ["--steps", str(steps)]
    return []


def assignments(values: Mapping[str, Any], prefix: str) -> list[str]:
    """``--set PREFIXkey=value`` for each value, as the command line reads them."""
    words: list[str] = []
    for key, value in values.items():
        plain = isinstance(value, str) and not _reads_as_other(value)
        text = value if plain else json.dumps(value, separators=(",", ":"))
        words += ["--set", f"{prefix}{key}={text}"]
    return words


def _reads_as_other(text: str) -> bool:
    """Whether the command line would take this text for a number or a list."""
    if "," in text:
        return True
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def common(seed: int, device: str) -> list[str]:
    """``--seed`` and ``--device`` where they are not the defaults."""
    words = ["--seed", str(seed)] if seed else []
    return words + (["--device", device] if device != "auto" else [])


# What a dry run measured, in sentences; no Qt here.


_FLAGS = re.compile(r"\s*\((settings: )?--[^)]*\)")


def end_text(seconds: float, now: datetime.datetime) -> str:
    """``about 17:40``, with the day when it is not today."""
    end = now + datetime.timedelta(seconds=seconds)
    clock = f"{end:%H:%M}"
    days = (end.date() - now.date()).days
    if days == 0:
        return f"about {clock}"
    if days == 1:
        return f"tomorrow about {clock}"
    return f"on {end:%A}, {end.day} {end:%B}, about {clock}"


def estimate_lines(plan: Mapping[str, Any], now: datetime.datetime) -> list[str]:
    """The dry run's answer for people.

    Args:
        plan: Result of the ``plan`` job.
        now: The time, local.
    """
    step, steps = float(plan.get("seconds_per_step") or 0), int(plan.get("steps") or 0)
    total = float(plan.get("total_s") or step * steps)
    lines = [
        f"About {duration(total)} for {steps:,} steps ({step_text(step)} each); "
        f"started now, it ends {end_text(total, now)}."
    ]
    parts = []
    if plan.get("memory_bytes"):
        parts.append(
            f"needs about {human_bytes(float(plan['memory_bytes']))} of memory"
        )
    batch = plan.get("batch_size")
    if batch:
        parts.append(f"{counted(int(batch), 'crop')} at a time")
    if plan.get("device"):
        parts.append(f"on {device_text(str(plan['device']))}")
    if plan.get("precision"):
        parts.append(f"in {plan['precision']}")
    if parts:
        text = ", ".join(parts)
        lines.append(text[:1].upper() + text[1:] + ".")
    training = (plan.get("resolved") or {}).get("training") or {}
    asked_batch = int(training.get("batch_size") or 0)
    if batch and int(batch) < asked_batch:
        lines.append(
            f"Memory is short: {batch} instead of {asked_batch} crops fit at a time."
        )
    return lines + [text for text in map(_note, plan.get("notes") or ()) if text]


def _note(note: Any) -> str:
    """The first line of a note, without what only helps at the command line."""
    first = str(note).strip().partition("\n")[0]
    text = _FLAGS.sub("", first).strip()
    return text[:1].upper() + text[1:]


def no_gpu_hint(total_s: float | None, kind: str) -> str:
    """What a machine without GPU means, with a time where one was measured."""
    if kind == "pretrain":
        work = "pretraining"
        rest = "exploring and training a head work here"
    else:
        work = "this fine-tuning"
        rest = "exploring works here"
    if total_s is None:
        return f"No GPU found: {rest}; press Estimate to see how long {work} takes."
    return f"No GPU found: {rest}; {work} takes about {duration(total_s)}."


def step_text(seconds: float) -> str:
    """Seconds per step with as many digits as mean something."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{max(1, round(seconds * 1000))} ms"


def device_text(name: str) -> str:
    """``cpu`` -> ``the CPU``, ``cuda:1`` -> ``GPU 1``."""
    if name.startswith("cuda"):
        return f"GPU {name.partition(':')[2] or '0'}"
    return "the CPU" if name == "cpu" else name


# What was chosen in the panels, kept between sessions in one JSON file of the home.


_FILE = "window.json"


def read(home: Path, section: str) -> dict[str, Any]:
    """What a panel kept; empty where there is nothing, or nothing readable."""
    found = _all(home).get(section)
    return found if isinstance(found, dict) else {}


def write(home: Path, section: str, values: dict[str, Any]) -> None:
    """Keep a panel's choices; a disk that refuses costs them, nothing more."""
    everything = {**_all(home), section: values}
    with contextlib.suppress(OSError, TypeError, ValueError):
        make_folder(home)
        write_json(home / _FILE, everything, sync=False)  # between two clicks


def forget(home: Path, section: str) -> None:
    """Back to what a new user sees."""
    write(home, section, {})


def _all(home: Path) -> dict[str, Any]:
    return object_or_none(home / _FILE) or {}


SCRATCH = "scratch"
# Kind of a model learnt from a few painted voxels.
PAINTED = "few_voxels"
# Spacings that differ by more than this factor are worth a warning.
_SPACING_FACTOR = 1.4
_NAMES_SHOWN = 7


# What a model's validation is called, by its kind.
_MEASURES = {
    "": (("dice", "Dice"), ("auc", "AUC")), "detect": (("ap50", "AP50"),),
    "translate": (("psnr", "PSNR (dB)"),),
}  # fmt: skip


@dataclass(frozen=True)
class ModelChoice:
    """A trained network that lies on disk.

    Attributes:
        path: The run or model folder, as commands take it.
        name: Short name.
        kind: ``encoder``, or the task it was fine-tuned for.
        backbone: Name of the network.
        label_names: Label value -> name; empty for encoders and classifiers.
        classes: Of whole scans, or of boxes, where it tells those.
        spacing_mm: Voxel size (z, y, x) scans are resampled to; None keeps their own.
        modalities: What it learnt from.
        window: Voxels (z, y, x) seen at once; empty when the card does not say.
        card: The whole card.
        where: ``shipped`` with Homolog, ``library`` or ``run``; empty elsewhere.
    """

    path: Path
    name: str
    kind: str
    backbone: str
    label_names: Mapping[int, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    spacing_mm: tuple[float, ...] | None = None
    modalities: tuple[str, ...] = ()
    window: tuple[int, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def title(self) -> str:
        """One line for a list: name and what it is."""
        early = stopped_words(self.card)
        unfinished = f", {early}" if early else ""
        if self.kind == "encoder":
            method = str(self.card.get("method") or "encoder")
            if self.where == SHIPPED:
                return f"{self.name} (built in)"  # short enough to be read in a list
            return f"{self.name} ({method}, {self.backbone}{unfinished})"
        if self.detects:
            count = counted(len(self.classes), "class")
            return f"{self.name} (boxes of {count}, {self.backbone}{unfinished})"
        if self.translates:
            return f"{self.name} ({self.made}, {self.backbone}{unfinished})"
        if self.classifies:
            count = counted(len(self.classes), "class")
            return f"{self.name} ({count} of whole scans, {self.backbone}{unfinished})"
        how = f"painted, {self.backbone or 'intensity'}"
        how = how if self.kind == PAINTED else self.backbone
        count = counted(len(self.label_names), "class")
        return f"{self.name} ({count}, {how}{unfinished})"

    @property
    def classifies(self) -> bool:
        """Whether it tells classes of whole scans, not labels of voxels."""
        return bool(self.classes) and not self.detects

    @property
    def detects(self) -> bool:
        """Whether it tells boxes."""
        return self.kind == "detect"

    @property
    def translates(self) -> bool:
        """Whether it makes an image."""
        return self.kind == "translate"

    @property
    def made(self) -> str:
        """What a translator makes of what, such as ``T2 from T1``."""
        spec = self.card.get("task_spec") or {}
        told = spec.get("translation") or {}
        target = told.get("name") or "an image"
        if told.get("dose"):
            return f"full dose of {told.get('modality') or target}"
        names = self._channel_names
        return f"{target} from {listed(names)}" if names else str(target)

    @property
    def makes(self) -> str:
        """What a translator makes, for the name of the image: no scan was so taken."""
        told = (self.card.get("task_spec") or {}).get("translation") or {}
        name = str(told.get("name") or told.get("modality") or "image")
        return f"full dose {name}" if told.get("dose") else name

    @property
    def keeps_values(self) -> bool:
        """Whether what a translator makes is meant as its input is: same unit."""
        told = (self.card.get("task_spec") or {}).get("translation") or {}
        return bool(told.get("dose"))

    @property
    def least_score(self) -> float | None:
        """The score from which on a detector tells a box; None where it tells all."""
        found = (self.card.get("task_spec") or {}).get("threshold")
        return None if found is None else float(found)

    @property
    def _channel_names(self) -> list[str]:
        """What the scans are called that it takes together; empty where nobody says."""
        spec = self.card.get("task_spec") or {}
        return [str(name) for name in spec.get("channel_names") or () if name]

    @property
    def facts(self) -> str:
        """What it finds and what it was trained on, in one or two lines."""
        return " ".join([*self._finds(), *self._learnt_from()])

    def _finds(self) -> list[str]:
        """Sentences on what comes out, and what goes in."""
        parts = []
        if self.label_names:
            parts.append(
                f"Finds {listed(self.label_names.values(), most=_NAMES_SHOWN)}."
            )
        if self.detects:
            names = listed(self.classes, most=_NAMES_SHOWN)
            parts.append(f"Finds boxes around {names}.")
        if self.classifies:
            several = (self.card.get("task_spec") or {}).get("several")
            how = "any or none of" if several else "one of"
            names = listed(self.classes, "or", most=_NAMES_SHOWN)
            parts.append(f"Tells of a whole scan {how} {names}.")
        if self.translates:
            parts.append(f"Makes {self.made}.")
        elif len(channels := self._channel_names) > 1:
            parts.append(f"Takes {listed(channels)} of one person together.")
        return parts

    def _learnt_from(self) -> list[str]:
        """Sentences on the scans it learnt from, and how well."""
        parts = []
        size = "their own voxel size"
        if self.spacing_mm is not None:
            size = spacing_text(self.spacing_mm)
        elif (learnt := learnt_of(self.card, None)).spacing is not None:
            size = learnt.spacing.text
        elif learnt.remark:
            size = "a voxel size that it does not say"
        kinds = listed([m for m in self.modalities if m != "OTHER"]) or "scans"
        data = f"Trained on {kinds} at {size}"
        if self.window:
            data += f", seeing {lengths_text(self.window, 'voxels')} at once"
        parts.append(data + ".")
        validation = self.card.get("validation") or {}
        for key, word in _MEASURES.get(self.kind, _MEASURES[""]):
            value = validation.get(key)
            if isinstance(value, int | float) and value == value:
                parts.append(f"{word} on held-out scans {value:.2f}.")
        if early := stopped_words(self.card):
            parts.append(f"The training was {early}; it can be resumed in Runs.")
        if self.where in (SHIPPED, LIBRARY):
            parts.append(f"Licence: {licence_words(self.card)}.")
        return parts

    @cached_property
    def learnt(self) -> Learnt:
        """The voxel size it learnt at, from its card or else from its training data.

        Reads the training store where the card does not say: not for lists.
        """
        places = (p for p in (self.path, self.path / "model") if (p / CARD).is_file())
        return learnt_of(self.card, next(places, None))


def read_choice(path: Path) -> ModelChoice:
    """The card of a run, a model folder or a file inside one.

    Raises:
        UnusableInput: There is no card, or it is damaged.
    """
    card_path = next(
        (p / CARD for p in (path, path / "model") if (p / CARD).is_file()), None
    )
    if card_path is None:
        raise UnusableInput(f"{path} holds no model yet ({CARD} is missing).")
    try:
        card = read_card(card_path.parent, usable=False)
        painted = card.get("kind") == PAINTED
        # a painted model may read intensities alone
        network = card.get("backbone") or {"name": ""} if painted else card["backbone"]
        backbone = str(network["name"])
        spacing = (card.get("preprocessing") or {}).get("spacing_mm")
        spec = card.get("task_spec") or {}
        names = {int(v): str(n) for v, n in (card.get("label_names") or {}).items()}
        name = path.parent.name if path.name == "model" else path.name
        return ModelChoice(
            path=path,
            name=name,
            kind=str(card.get("kind", "encoder")),
            backbone=backbone,
            label_names=names if card.get("kind") != "encoder" else {},
            classes=_classes(card, spec),
            spacing_mm=None if spacing is None else tuple(float(s) for s in spacing),
            modalities=_modalities(card, spec),
            window=tuple(int(n) for n in card.get("window") or ()),
            card=card,
        )
    except UnusableInput:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableInput(f"{card_path} is damaged ({error}).") from error


def list_encoders(
    runs: Path, models: Path, extra: Iterable[Path] = ()
) -> list[ModelChoice]:
    """Encoders: shipped ones, the library's, those of runs (newest first), ``extra``.

    Args:
        runs: Folder of the runs.
        models: Folder of imported models.
        extra: Runs or model folders that lie elsewhere.
    """
    return [c for c in _choices(runs, models, extra) if c.kind == "encoder"]


def list_models(
    runs: Path, models: Path, extra: Iterable[Path] = ()
) -> list[ModelChoice]:
    """As ``list_encoders``: models that can label, classify or translate scans.

    Another model without names of labels or classes cannot, and is left out.
    """
    found = [c for c in _choices(runs, models, extra) if c.kind != "encoder"]
    return [c for c in found if c.label_names or c.classes or c.translates]


def list_embedders(
    runs: Path, models: Path, wanted: Path | None = None
) -> list[ModelChoice]:
    """Encoders, then fine-tuned models: all whose features can be computed.

    Args:
        runs: Folder of the runs.
        models: Folder of imported models.
        wanted: What was asked for elsewhere, listed last where it is not known.
    """
    found = [*list_encoders(runs, models), *list_models(runs, models)]
    found = [c for c in found if c.kind != PAINTED]  # their encoder is in the list
    if wanted is not None and wanted.resolve() not in {c.path.resolve() for c in found}:
        with contextlib.suppress(UnusableInput):
            found.append(read_choice(wanted))
    return found


def misfit(
    model: ModelChoice,
    name: str,
    modality: str,
    spacing_mm: Sequence[float],
    *,
    asks: bool = True,
) -> list[str]:
    """Sentences about a scan that is unlike those the model learnt from.

    Args:
        model: About to be used.
        name: Of the scan.
        modality: Of the scan; OTHER means unknown.
        spacing_mm: Of the scan (z, y, x).
        asks: Whether the user can say Continue, for this scan alone.
    """
    found = []
    known = [m for m in model.modalities if m != "OTHER"]
    if known and modality != "OTHER" and modality not in known:
        single = asks and len(known) == 1
        then = f"Continue takes it for {known[0]}" if single else "It will be refused"
        found.append(
            f"{name} is {modality}, but the model learnt from {listed(known)}. "
            f"{then}; a model for {modality} would do better."
        )
    wanted = model.spacing_mm
    if wanted is None and len(spacing_mm) == 3 and (learnt := model.learnt).spacing:
        z, y, x = spacing_mm
        # the size of the scan is not asked here: a picture is told apart by its 1 mm
        wanted = learnt.spacing.target_mm((z, y, x), (2, 2, 2))
    elif wanted is None and model.learnt.remark:
        found.append(f"{name}: {model.learnt.remark}")
    if len(spacing_mm) == 3:
        z, y, x = spacing_mm
        far = model.learnt.far((z, y, x), (2, 2, 2))
        if far is not None and far.hides:
            return [*found, f"{name} has {far.text}; it will be refused."]
    if wanted is not None and len(wanted) == len(spacing_mm) == 3:
        factors = [a / b for a, b in zip(spacing_mm, wanted, strict=True) if b > 0]
        off = [max(f, 1 / f) for f in factors if f > 0]
        if off and max(off) > _SPACING_FACTOR:
            found.append(_spacing_sentence(name, spacing_mm, wanted))
    return found


def _spacing_sentence(name: str, own: Sequence[float], wanted: Sequence[float]) -> str:
    """``CT_03 has 5 mm slices, the model was trained at 1.5 mm``: the worst axis."""
    pairs = list(zip(own, wanted, strict=True))
    worst = max(range(3), key=lambda i: max(pairs[i][0] / pairs[i][1],
                                            pairs[i][1] / pairs[i][0]))  # fmt: skip
    what = "slices" if worst == 0 else "pixels"
    a, b = pairs[worst]
    return (
        f"{name} has {a:.3g} mm {what}, the model was trained at {b:.3g} mm. "
        "The scan will be resampled for it; the result comes back on its own grid."
    )


def begin_with(
    models: Sequence[ModelChoice], modalities: Iterable[str] = ()
) -> ModelChoice | None:
    """The one to take before anybody chose: the newest run that fits, or one at hand.

    Args:
        models: As they are listed.
        modalities: Of the scans that are open, where they are known.

    Returns:
        A run fits that learnt from one of these modalities; of a network whose own are
        unknown an encoder does, but no fine-tuned one: a classifier of X-rays is not
        for a CT. Without one, of those that come with Homolog the one made for these
        modalities and the fewest others, or else for the most; or the first of all.
    """
    told = set(modalities)
    kinds = told - {"OTHER"}
    own = [m for m in models if m.where not in (SHIPPED, LIBRARY)]
    suits = next((m for m in own if _suits(m, kinds)), None)
    if suits is not None or not models:
        return suits
    shipped = [m for m in models if m.where == SHIPPED]
    fitting = [m for m in shipped if kinds and kinds <= set(m.modalities)]
    if fitting:
        # beside a scan of an unknown kind, the one that knows most kinds
        best = max if "OTHER" in told else min
        return best(fitting, key=lambda m: len(m.modalities))
    return max(shipped, key=lambda m: len(m.modalities)) if shipped else models[0]


def _suits(model: ModelChoice, kinds: set[str]) -> bool:
    """Whether somebody's own model may be meant for scans of these modalities."""
    learnt = set(model.modalities) - {"OTHER"}
    if not kinds:
        return True
    return bool(learnt & kinds) if learnt else model.kind == "encoder"


def _choices(runs: Path, models: Path, extra: Iterable[Path]) -> Iterator[ModelChoice]:
    found = []
    for run in find_runs(runs):
        card = run.folder / "model" / CARD
        try:
            found.append((card.stat().st_mtime, run.folder))
        except OSError:
            continue
    known = (*shipped_models(), *models_below(models, LIBRARY))
    places = [(m.path.resolve(), m.where) for m in known]
    places += [(p.resolve(), "run") for _, p in sorted(found, key=lambda f: -f[0])]
    places += [(p.resolve(), "") for p in extra]
    for folder in dict.fromkeys(folder for folder, _ in places):
        where = next(w for f, w in places if f == folder)
        try:
            yield replace(read_choice(folder), where=where)
        except UnusableInput:
            continue  # the Models tab shows what is damaged


def _classes(card: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, ...]:
    if card.get("kind") not in ("classify", "detect"):
        return ()
    return tuple(str(name) for name in spec.get("classes") or ())


def _modalities(card: Mapping[str, Any], spec: Mapping[str, Any]) -> tuple[str, ...]:
    told = spec.get("modalities") or card.get("modalities") or ()
    if isinstance(told, Mapping):
        told = told.keys()
    return tuple(sorted(str(m) for m in told))


def treated_as(model: ModelChoice, modality: str) -> str | None:
    """The modality to tell the engine for a scan of another one, after the warning.

    Only where it can be told: the model must have learnt from a single modality.
    """
    known = [m for m in model.modalities if m != "OTHER"]
    if modality == "OTHER" or modality in known or len(known) != 1:
        return None
    return known[0]


# Stores to learn from, as the window lists them; cards only, no voxels, no torch.


@dataclass(frozen=True)
class ClassCount:
    """One class of a store.

    Attributes:
        value: In the label maps.
        name: For people.
        cases: Scans that show it.
        volume_ml: All its voxels together.
    """

    value: int
    name: str
    cases: int
    volume_ml: float


@dataclass(frozen=True)
class StoreChoice:
    """A store in the list.

    Attributes:
        path: Its folder.
        cases: Scans in it.
        labelled: Scans with a label map.
        learnable: Scans that are not kept for the final test.
        teachable: Those of them with a label map that are learnt from (not held out
            for validation).
        spacing: Voxel size in mm, as text.
        modalities: ``6 CT, 2 MR``.
        classes: Of label maps, with counts, by value.
        scan_classes: Of whole scans: name and number of scans, by name; where a scan
            may have several, last those without any.
        several: Whether a scan may have several such classes, or none.
        classed: Scans whose class is known.
        class_teachable: Scans with such a class that are learnt from.
        held_out: Scans with a label map that are kept for validation.
        class_held_out: Scans with such a class that are kept for validation.
        label_patients: Patients whose label maps are learnt from.
        box_classes: Of boxes: name, scans that show it, and boxes of it, by name.
        boxed: Scans with boxes.
        box_teachable: Scans with boxes, or a label map to make some of, or known to
            have none, learnt from.
        box_held_out: Such scans that are kept for validation.
        box_patients: Patients of those that are learnt from.
        channels: What the channels of its scans are called; empty where they have one.
        scan_teachable: All scans that are learnt from.
        scan_held_out: All scans that are kept for validation.
        patients: Patients of those that are learnt from.
        class_patients: Patients with such a class that are learnt from.
        preprocessing: How its scans were prepared; None where it cannot be read.
        problem: Why it cannot be used; empty when it can.
    """

    path: Path
    cases: int = 0
    labelled: int = 0
    learnable: int = 0
    teachable: int = 0
    spacing: str = ""
    modalities: str = ""
    classes: tuple[ClassCount, ...] = field(default_factory=tuple)
    scan_classes: tuple[tuple[str, int], ...] = ()
    several: bool = False
    classed: int = 0
    class_teachable: int = 0
    held_out: int = 0
    class_held_out: int = 0
    label_patients: int = 0
    class_patients: int = 0
    box_classes: tuple[tuple[str, int, int], ...] = ()
    boxed: int = 0
    box_teachable: int = 0
    box_held_out: int = 0
    box_patients: int = 0
    channels: tuple[str, ...] = ()
    scan_teachable: int = 0
    scan_held_out: int = 0
    patients: int = 0
    preprocessing: Preprocessing | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    @property
    def title(self) -> str:
        """One line: ``abdomen: 12 scans, 8 labelled, 1.5 mm, 12 CT``."""
        if self.problem:
            return f"{self.name}: cannot be used"
        scans = counted(self.cases, "scan")
        other = self.classed or self.boxed or self.channels
        told = f"{self.labelled} labelled" if self.labelled or not other else ""
        classed = f"{self.classed} with a class" if self.classed else ""
        boxed = f"{self.boxed} with boxes" if self.boxed else ""
        several = f"channels {listed(self.channels)}" if self.channels else ""
        parts = [scans, told, classed, boxed, several, self.spacing, self.modalities]
        return f"{self.name}: " + ", ".join(p for p in parts if p)


def read_store(path: Path) -> StoreChoice:
    """A store's line in the list; what is wrong with it becomes ``problem``."""
    try:
        store = Store.open(path)
    except (UnusableInput, JobError, OSError, ValueError, KeyError) as error:
        return StoreChoice(path, problem=str(error) or type(error).__name__)
    cards = store.cards
    learnt = [c for c in cards if c.split not in ("test", "val")]
    held = [c for c in cards if c.split == "val"]
    targets = [card.target for card in cards if card.target is not None]
    boxed = [c for c in learnt if _teaches_boxes(c)]
    return StoreChoice(
        path=path,
        cases=len(cards),
        labelled=sum(card.has_label for card in cards),
        learnable=sum(card.split != "test" for card in cards),
        teachable=sum(card.has_label for card in learnt),
        spacing=_spacing(store),
        modalities=", ".join(
            f"{n} of unknown kind" if kind == "OTHER" else f"{n} {kind}"
            for kind, n in Counter(card.modality for card in cards).most_common()
        ),
        classes=_class_counts(cards, store.label_names),
        scan_classes=scan_classes(targets),
        several=any(map(has_several, targets)),
        classed=len(targets),
        class_teachable=sum(card.target is not None for card in learnt),
        held_out=sum(card.has_label for card in held),
        class_held_out=sum(card.target is not None for card in held),
        label_patients=subject_count([c for c in learnt if c.has_label]),
        class_patients=subject_count([c for c in learnt if c.target is not None]),
        box_classes=_box_classes(cards),
        boxed=sum(bool(card.boxes) for card in cards),
        box_teachable=len(boxed),
        box_held_out=sum(map(_teaches_boxes, held)),
        box_patients=subject_count(boxed),
        channels=_channels(cards),
        scan_teachable=len(learnt),
        scan_held_out=len(held),
        patients=subject_count(learnt),
        preprocessing=store.preprocessing,
        problem="" if cards else f"{path} holds no scan; build it anew.",
    )


def _channels(cards: Sequence[Card]) -> tuple[str, ...]:
    """Names of the channels of scans of several."""
    several = next((card for card in cards if card.channels > 1), None)
    if several is None:
        return ()
    return tuple(n or f"channel {i}" for i, n in enumerate(several.channel_names))


def list_stores(folder: Path, others: Iterable[Path] = ()) -> list[StoreChoice]:
    """Stores inside the stores folder, then those chosen elsewhere, each once."""
    inside: list[Path] = []
    if folder.is_dir():
        inside = sorted(p for p in folder.iterdir() if (p / "store.json").is_file())
    paths = dict.fromkeys([*inside, *(Path(p) for p in others)])
    return [read_store(path) for path in paths]


def labelled_words(store: StoreChoice) -> str:
    """``abdomen (12 labelled scans)``; "" where features cannot be judged on it.

    That takes two labelled scans or more.
    """
    if store.problem or max(store.labelled, store.classed) < 2:
        return ""
    if store.labelled:
        return f"{store.name} ({counted(store.labelled, 'labelled scan')})"
    return f"{store.name} ({counted(store.classed, 'scan')} with a class)"


def next_name(stem: str, folder: Path) -> str:
    """``s2dc-abdomen-03``: the first number no run of the folder has."""
    number = 1
    while (folder / f"{stem}-{number:02d}").exists():
        number += 1
    return f"{stem}-{number:02d}"


def name_problem(name: str, folder: Path) -> str:
    """Why a run cannot be named so, in one sentence; empty when it can."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return "Name the run with letters, digits, - and _ only."
    if (folder / name).exists():
        return f"A run named {name} exists already; choose another name."
    return ""


def class_lines(classes: Sequence[ClassCount], most: int = 30) -> list[str]:
    """``liver: 8 scans, 1,204 ml``, one per class."""
    lines = [
        f"{c.name}: {counted(c.cases, 'scan')}, {volume_text(c.volume_ml)}"
        for c in classes[:most]
    ]
    if len(classes) > most:
        lines.append(f"and {len(classes) - most} more")
    return lines


def _spacing(store: Store) -> str:
    chosen = store.preprocessing.spacing_mm
    if chosen is not None:
        return spacing_text(chosen)
    own = {spacing_text(card.spacing_mm) for card in store.cards}
    return own.pop() if len(own) == 1 else "own voxel sizes"


def scan_classes(targets: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Scans of each class."""
    if not any(map(has_several, targets)):
        return tuple(sorted(Counter(targets).items()))
    found = Counter(name for target in targets for name in findings_of(target))
    none = sum(map(says_none, targets))
    return (*sorted(found.items()), *(((NONE, none),) if none else ()))


def _teaches_boxes(card: Card) -> bool:
    """It has boxes, labels to make some of, or is known to have none."""
    return bool(card.boxes) or card.has_label or holds_nothing(card.target)


def _box_classes(cards: Sequence[Card]) -> tuple[tuple[str, int, int], ...]:
    boxes = Counter(box_name(box) for card in cards for box in card.boxes)
    scans = Counter(n for card in cards for n in {box_name(b) for b in card.boxes})
    return tuple((name, scans[name], boxes[name]) for name in sorted(boxes))


def _class_counts(
    cards: Sequence[Card], names: dict[int, str]
) -> tuple[ClassCount, ...]:
    cases: Counter[int] = Counter()
    millilitres: dict[int, float] = {}
    for card in cards:
        voxel_ml = prod(card.spacing_mm) / 1000.0
        for value in card.label_values:
            count = card.label_counts.get(value, 0)
            cases[value] += 1
            millilitres[value] = millilitres.get(value, 0.0) + count * voxel_ml
    return tuple(
        ClassCount(v, names.get(v, f"label {v}"), cases[v], millilitres[v])
        for v in sorted(cases)
    )
