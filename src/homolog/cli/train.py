"""``homolog pretrain``, ``finetune`` and ``demo``: the commands that train."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from homolog.cli._library import meant, whole_model
from homolog.cli._run import common, run_in_folder, show
from homolog.config import ConfigError, merge, parse_assignments
from homolog.tasks import PRETRAINED
from homolog.words import visible

if TYPE_CHECKING:
    from homolog.pretrain.settings import MissingPairs


# ``homolog demo``: the whole path on built-in patients.


@click.command("demo", short_help="The whole path on built-in data, with a report.")
@click.option(
    "--out",
    default=None,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of everything it makes; a stopped demo is continued.  "
    "[default: homolog-demo, or the next free number]",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the demo, e.g. minutes=10 or labelled=2.",
)
@common
def demo(
    out: Path | None,
    assignments: tuple[str, ...],
    seed: int,
    device: str,
    as_json: bool,
) -> int:
    """Make patients, learn without labels, label a little, compare, write a report.

    No network and no data are needed; on two cores it takes under five minutes. The
    patients are procedural (CT-like), with known labels and corresponding points. The
    encoder it leaves can be used by: homolog similarity, match, finetune.
    """
    from homolog.cli._run import conclude, follow, stop_on_interrupt
    from homolog.config import from_dict, parse_assignments, to_dict
    from homolog.demo.demo import DemoConfig, table_lines
    from homolog.events import Finished
    from homolog.runs.worker import execute

    settings = {**parse_assignments(assignments), "seed": seed, "device": device}
    config = to_dict(from_dict(DemoConfig, settings, where="demo"))
    run = begin(out, config)
    with stop_on_interrupt() as flag:
        last = follow(execute(run, flag))
    if not isinstance(last, Finished):
        return conclude(run, last, as_json)
    result: dict[str, Any] = {"out": str(run.folder), **last.result}
    lines = [
        *table_lines(result),
        f"{result['tests']} test patients, {result['labelled']} labelled learnt from, "
        f"seed {result['seed']}, {result['seconds']['total']:.0f} s",
        f"report: {result['report']}",
    ]
    show(result, as_json, lines)
    return 0


def begin(out: Path | None, config: dict[str, Any]) -> Any:
    """A new run, or the stopped one in that folder."""
    from homolog.errors import UnusableInput
    from homolog.runs.run import Run

    if out is None:
        names = ["homolog-demo", *(f"homolog-demo-{i}" for i in range(2, 1000))]
        out = next(Path(n) for n in names if not Path(n).exists())
    if not (out / "run.json").exists():
        return Run.create(out, "demo", config)
    run = Run.open(out)
    state = run.state()
    if run.spec["kind"] != "demo" or state in ("running", "paused", "finished"):
        raise UnusableInput(
            f"{out} holds a {run.spec['kind']} run that is {state}; "
            "choose another --out."
        )
    return run


F = TypeVar("F", bound=Callable[..., Any])


def _training(out: str, recipe: str, backbone: str, settings: str) -> Callable[[F], F]:
    """Add what both commands take; the arguments are their own words of help."""
    options = (
        click.argument(
            "stores", nargs=-1, required=True, metavar="STORE...",
            type=click.Path(path_type=Path),
        ),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), metavar="RUN",
            help=out,
        ),
        click.option(
            "--recipe", default="auto", show_default=True, metavar="RECIPE",
            help=recipe,
        ),
        click.option("--backbone", default=None, metavar="B", help=backbone),
        click.option(
            "--steps", type=click.IntRange(1), default=None,
            help="Training steps.  [default: the recipe's]",
        ),
        click.option(
            "--minutes", type=click.FloatRange(0, min_open=True), default=None,
            help="Time instead of steps, all included; the number of steps follows as "
            "they get faster or slower.",
        ),
        click.option(
            "--set", "assignments", multiple=True, metavar="KEY=VALUE", help=settings,
        ),
        click.option(
            "--background", is_flag=True,
            help="Return at once; follow with: homolog runs follow",
        ),
    )  # fmt: skip

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _length(steps: int | None, minutes: float | None) -> dict[str, float]:
    """Settings of the training that ``--steps`` or ``--minutes`` stand for."""
    if steps is not None and minutes is not None:
        raise ConfigError("give --steps or --minutes, not both.")
    if steps is not None:
        return {"steps": steps, "minutes": 0.0}
    return {} if minutes is None else {"minutes": minutes}


def _complete(kind: str, request: dict[str, Any]) -> dict[str, Any]:
    """The complete configuration, as the worker of a window's request makes it."""
    from homolog.runs.jobs import UNRESOLVED, resolved

    return resolved(kind, {**request, UNRESOLVED: True})


@click.command("pretrain", short_help="Learn an encoder from scans without labels.")
@click.argument("method")
@_training(
    out="Folder of the run; new or empty.",
    recipe="cpu, gpu, paper (see homolog methods METHOD), auto (by the device), or a "
    ".toml or .json file.",
    backbone="Network, if not the recipe's.",
    settings="A setting: method.KEY, backbone.KEY or training.KEY. May be repeated.",
)
@click.option(
    "--encoder",
    default="",
    metavar="RUN",
    help="Start from these weights (a run, a file or a model's name) instead of random "
    "ones.",
)
@click.option(
    "--aligner",
    default=None,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Trained anatomical embedding that finds matching places first, where the "
    "method needs them (alice) and the store has none.",
)
@click.option(
    "--without",
    "without_splits",
    default="test",
    show_default=True,
    metavar="SPLITS",
    help="Splits never looked at, e.g. test,val; 'none' takes every case.",
)
@click.option(
    "--share-by",
    type=click.Choice(["store", "modality"]),
    default=None,
    help="Between whom the crops are shared out.  [default: store]",
)
@click.option(
    "--share-power",
    type=click.FloatRange(0, 1),
    default=None,
    metavar="P",
    help="How: 1 by number of scans, 0.5 by its square root, 0 evenly.  "
    "[default: the method's]. Where modalities take turns, as hundred_million's do, "
    "both mean nothing.",
)
@common
def pretrain(
    method: str,
    stores: tuple[Path, ...],
    out: Path,
    encoder: str,
    aligner: Path | None,
    without_splits: str,
    steps: int | None,
    minutes: float | None,
    assignments: tuple[str, ...],
    background: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Learn an encoder from the scans of STORE..., without labels.

    METHOD is one of homolog methods. Ctrl-C stops between two steps with state
    and encoder saved; homolog runs resume RUN goes on exactly.

    \b
    homolog pretrain s2dc store --out runs/pre
    homolog pretrain s2dc store --out runs/pre --minutes 10 --background
    homolog pretrain alice store --aligner runs/sam --out runs/alice
    homolog pretrain mae store --backbone vit --set method.size=64,64,64 --out runs/mae
    torchrun --nproc-per-node 4 -m homolog.cli pretrain s2dc store --out runs/big
    """  # noqa: D301 - click reads the backspace
    from homolog.pretrain.settings import MissingPairs

    length = {"training": _length(steps, minutes)}
    request = {
        **given,  # recipe, backbone, share_by, share_power, seed, device
        "method": method,
        "stores": [str(store) for store in stores],
        "settings": merge(parse_assignments(assignments), length),
        "encoder": whole_model(encoder) if encoder else "",
        "without_splits": _names(without_splits),
    }
    config = None
    while config is None:
        try:
            config = _complete("pretrain", request)
        except MissingPairs as missing:
            # one table is made per turn: each store of several may lack its own
            found = aligner or _asked_aligner(missing)
            _align(missing, found, given["device"], given["seed"])
    return run_in_folder("pretrain", config, out, as_json, background)


def _asked_aligner(missing: MissingPairs) -> Path:
    """Offer to make the table; without a terminal, or if declined, the error stays."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise missing
    click.echo(visible(str(missing)), err=True)
    answer = click.prompt(
        "Run of a trained anatomical embedding to align with (empty: stop)",
        default="", show_default=False, err=True,
    )  # fmt: skip
    if not answer.strip():
        raise missing
    return Path(answer.strip()).expanduser()


def _align(missing: MissingPairs, aligner: Path, device: str, seed: int) -> None:
    """Make the table of one store."""
    from homolog.cli._jobs import run
    from homolog.runs.jobs import job_of

    wanted = {
        "encoder": meant(str(aligner)), "store": str(missing.store), "device": device,
        "seed": seed,
    }  # fmt: skip
    result = run(job_of("align")(wanted, missing.store))
    click.echo(f"{result['rows']} matching places in {result['pairs']}", err=True)


def _names(text: str) -> list[str]:
    """``"test,val"`` -> names; ``none`` -> no name."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [n for n in names if n not in ("train", "val", "test", "none")]
    if unknown:
        raise ConfigError(
            f"--without takes train, val, test, none; got {unknown[0]!r}."
        )
    return [n for n in names if n != "none"]


def _pretrained_words() -> str:
    """The rates that hold where weights came pretrained, for the help."""
    told = {}
    for recipe, tables in PRETRAINED.items():
        own = [f"{name}={value}" for name, value in tables["task"].items()]
        own += [
            f"training.{name}={value}" for name, value in tables["training"].items()
        ]
        told[recipe] = own
    shared = [text for text in told["cpu"] if text in told["gpu"]]
    rest = {r: " ".join(t for t in own if t not in shared) for r, own in told.items()}
    parts = [f"{recipe}: {own}" for recipe, own in rest.items() if own]
    return " ".join(shared) + (f" ({'; '.join(parts)})" if parts else "")


@click.command("finetune", short_help="Learn a task from labelled cases.")
@click.argument("task")
@_training(
    out="Folder of the run; its model/ can predict.",
    recipe="Settings to start from: cpu, gpu, auto (by the device), or as published: "
    "see homolog methods TASK.",
    backbone="Network to train from scratch, or that a foreign weight file holds.",
    settings="A setting: training.KEY, backbone.KEY, or KEY of the task. May be "
    "repeated.",
)
@click.option(
    "--encoder",
    required=True,
    metavar="RUN|FILE|scratch",
    help="A pretraining run, a weight file, a model's name (homolog models list), or "
    "'scratch' for random weights. Weights "
    "that came pretrained have rates of their own unless --set says otherwise: "
    f"{_pretrained_words()}.",
)
@click.option(
    "--carried",
    default=None,
    metavar="STORE",
    type=click.Path(path_type=Path),
    help="Store of the same scans with labels carried to them (homolog propagate "
    "--as-store): half of what is seen comes from it.",
)
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the labelled training subjects used.",
)
@click.option(
    "--patients",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Labelled training patients used, exactly so many, the same ones for one "
    "seed, fewer within more; 0: all.",
)
@click.option(
    "--validate",
    "validate",
    default=None,
    metavar="none|all|K",
    help="Labelled held-out cases that choose the weights; they count as labels too. "
    "none keeps the last weights.  [default: the task's; segment 16, classify all]",
)
@click.option(
    "--fold", default=None, metavar="I/K", help="Hold out the i-th of k parts."
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=None,
    metavar="K",
    help="All k parts, one run each: every case is scored by the model that has not "
    "learnt from it, and RUN/model is the mean of all of them.",
)
@common
def finetune(
    stores: tuple[Path, ...],
    out: Path,
    encoder: str,
    carried: Path | None,
    validate: str | None,
    backbone: str | None,
    steps: int | None,
    minutes: float | None,
    folds: int | None,
    assignments: tuple[str, ...],
    background: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Learn TASK (segment, classify, detect, translate) from the cases of STORE...

    classify learns the class of whole scans, which a manifest names (column class);
    a|b are two classes of one scan, "no finding" is none, an empty cell is unknown. A
    2D encoder classifies volumes slice by slice.

    detect learns boxes: those of a manifest (columns boxes, or x, y, w, h), or around
    the labels of label maps. Scans known to have none (class "no finding", normal,
    healthy) teach that too.

    translate makes one channel of a case from others (--set target=T2), or PET of a
    full dose from a low one that is simulated (--set dose=50).

    Several stores may annotate different classes: labels of one name are one class,
    and where a store does not annotate a class, nothing is learnt about it there.

    Where an encoder (or a decoder) came pretrained, what is new learns alone at first,
    and then all of it, what came pretrained more slowly; each setting is told at the
    start. From scratch everything learns alike.

    The best weights on the store's validation cases are kept: these cases need labels
    too, beside those learnt from; --validate says how many, or none. The test split
    is never looked at; see homolog evaluate. Ctrl-C stops between two steps: state and
    model so far are saved, and homolog runs resume RUN goes on exactly.

    \b
    homolog finetune segment store --encoder runs/pre --out runs/seg --minutes 10
    homolog finetune segment store --encoder scratch --backbone swin --out runs/swin
    homolog finetune classify xrays --encoder runs/pre --out runs/cls
    homolog finetune detect lesions --encoder runs/pre --out runs/boxes
    homolog finetune segment store --encoder runs/pre --fraction 0.1 --fold 1/5 \\
        --set training.learning_rate=5e-4 --set head_first=0.2 --out runs/few
    homolog finetune segment store --encoder runs/pre --folds 5 --out runs/five
    """  # noqa: D301 - click reads the backspace
    own, training, network = sort_settings(assignments)
    if validate is not None:
        own["validate_cases"] = validated_cases(validate)
    if backbone is not None:
        network["name"] = backbone
    request = {
        **given,  # task, recipe, fraction, patients, fold, seed, device
        "store": str(stores[0].resolve()),
        "more_stores": [str(store.resolve()) for store in stores[1:]],
        "carried": str(carried.resolve()) if carried else None,
        "encoder": encoder if encoder == "scratch" else whole_model(encoder),
        "backbone": network,
        "task_config": own,
        "training": training | _length(steps, minutes),
    }
    kind = "finetune"
    if folds is not None:
        kind, request = "folds", {**request, "folds": folds}
    return run_in_folder(kind, _complete(kind, request), out, as_json, background)


def validated_cases(text: str) -> int | None:
    """``none``, ``all`` or a number -> the setting ``validate_cases``."""
    word = text.strip().lower()
    if word in ("none", "all"):
        return None if word == "none" else 0
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"--validate takes none, all or a number, got {text!r}.")
    return int(word)


def sort_settings(
    assignments: tuple[str, ...],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """``--set`` values -> settings of the task, the training and the backbone."""
    own = parse_assignments(assignments)
    own |= own.pop("task", {})
    parts = []
    for name in ("training", "backbone"):
        part = own.pop(name, {})
        if not isinstance(part, dict):
            raise ConfigError(f"--set {name}.KEY=VALUE is meant, got {name}={part!r}.")
        parts.append(part)
    return own, parts[0], parts[1]
