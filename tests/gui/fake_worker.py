"""The worker with jobs that need no torch: ``python fake_worker.py RUN``.

``slow`` trains nothing, step by step, with checkpoints, and resumes; ``flood`` tells as
much as it can; ``broken`` ends with the error it was given.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress, Request, Saved, Started, Step, Stopped
from homolog.runs import worker
from homolog.runs.jobs import JOBS


def slow(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """``steps`` steps of ``step_s`` seconds, a checkpoint every ``save_every``."""
    steps, save_every = int(config["steps"]), int(config.get("save_every", 2))
    done = max((_step(p) for p in (folder / "checkpoints").glob("step_*")), default=0)
    if done:
        yield Note(f"resuming after step {done}.")
    yield Started("train", steps, {"device": "cpu", "batch_size": 4})
    while done < steps:
        time.sleep(float(config.get("step_s", 0.02)))
        done += 1
        losses = {"a": 2.0 * math.exp(-done / 20), "b": 0.5}
        monitors = {"tokens_std": 0.9, "tokens_rank": 12.0, "gradient_norm": 1.0}
        asked = yield Step(done, steps, losses, monitors, 0.02, (steps - done) * 0.02)
        with (folder / "metrics.csv").open("a") as table:
            if not table.tell():
                table.write("step,a,b\n")
            table.write(f"{done},{losses['a']},{losses['b']}\n")
        if done % save_every == 0 or asked is Request.STOP:
            place = folder / "checkpoints" / f"step_{done:08d}"
            place.mkdir(parents=True, exist_ok=True)
            yield Saved(str(place))
        if asked is Request.STOP:
            yield Stopped(done)
            return {}
    return {"steps": done}


def flood(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """As many steps as fit into ``seconds``, and ``least`` on the busiest machine."""
    until = time.monotonic() + float(config["seconds"])
    count, least = 0, int(config.get("least", 0))
    while time.monotonic() < until or count < least:
        count += 1
        losses = {"a": 1.0 + 0.1 * (count % 7)}
        asked = yield Step(count, 10**7, losses, {"x_std": 0.9}, 0.001, 60.0)
        if asked is Request.STOP:
            yield Stopped(count)
            return {}
    return {"steps": count}


def broken(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Tell two steps, then fail as told."""
    yield Step(1, 9, {"a": 1.0})
    yield Progress("reading", 1, 2)
    kinds = {"input": UnusableInput, "job": JobError, "memory": MemoryError}
    raise kinds[config["how"]](config["text"])


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def models(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """What ``homolog.model_files.care`` answers, without loading torch."""
    yield Progress(config["action"], 0, 1)
    if config["action"] == "export":
        Path(config["out"]).write_bytes(b"weights")
        return {"file": config["out"]}
    if not config["backbone"] and Path(config["source"]).read_bytes() == b"asks":
        raise UnusableInput("the file is in no layout that is known: name the backbone")
    out = Path(config["out"])
    out.mkdir(parents=True)
    (out / "encoder.safetensors").write_bytes(b"weights")
    network = {"name": config["backbone"] or "swin", "config": {}}
    card = {
        "kind": "encoder", "backbone": network,
        "weights": "encoder.safetensors", "sha256": {"encoder.safetensors": "0"},
    }  # fmt: skip
    (out / "model.json").write_text(json.dumps(card))
    return {"model": str(out), "encoder_id": "0", "backbone": network}


def probe(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """What a probe answers, its figures made up, without loading torch."""
    yield Note("only 2 patients can be judged.", "warning")
    for number in range(int(config.get("voxels", 3))):
        if (yield Progress("pre", number, 3, "case")) is Request.STOP:
            yield Stopped(0)
            return {"stopped": True}
        time.sleep(0.02)
    page = Path(config["out"]) / "probe.html"
    page.parent.mkdir(parents=True)
    page.write_text("<html></html>")
    labels = ["background", "liver"]

    def figure(value: float, *, against: bool = True) -> dict[str, Any]:
        known = {"value": value, "low": value - 0.1, "high": value + 0.1}
        more = {
            "random": {"value": 0.38, "each": [0.38], "labels": [0.4, 0.3]},
            "gain": {"value": value - 0.38, "low": 0.1, "high": 0.3},
        }
        return {**known, "labels": [0.7, 0.5], **(more if against else {})}

    def features(name: str, value: float, **how: Any) -> dict[str, Any]:
        measures = ("linear", "knn", "centroid", "dice")
        return {"features": name, **{m: figure(value, **how) for m in measures}}

    entries = [
        {
            "name": Path(path).name, "main": "all maps", "best_map": "stride 4",
            "learnt": True, "value": 0.6, "verdict": f"{Path(path).name}: learnt.",
            "features": [features("all maps", 0.6)],
        }
        for path in config["encoder"]
    ]  # fmt: skip
    none = [features("grey values", 0.35, against=False)]
    return {
        "kind": "labels", "labels": labels, "encoders": entries, "no_network": none,
        "verdict": f"Best of {len(entries)}: {entries[0]['name']}.", "failed": [],
        "html": str(page), "stopped": False,
    }  # fmt: skip


def report(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """A page that says what it was asked about, without loading torch."""
    yield Progress("pre: measuring", 0, 1, "stride 4")
    page = Path(config["out"]) / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps(config))
    return {"html": str(page), "stopped": False}


for _name in ("slow", "flood", "broken", "models", "probe", "report"):
    JOBS[_name] = f"{'fake_worker' if __name__ != '__main__' else '__main__'}:{_name}"

if __name__ == "__main__":
    sys.exit(worker.main())
