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
    """As many steps as fit into ``seconds``."""
    until = time.monotonic() + float(config["seconds"])
    count = 0
    while time.monotonic() < until:
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
    out = Path(config["out"])
    out.mkdir(parents=True)
    (out / "encoder.safetensors").write_bytes(b"weights")
    card = {
        "kind": "encoder", "backbone": {"name": config["backbone"], "config": {}},
        "weights": "encoder.safetensors", "sha256": {"encoder.safetensors": "0"},
    }  # fmt: skip
    (out / "model.json").write_text(json.dumps(card))
    return {"model": str(out), "encoder_id": "0"}


for _name in ("slow", "flood", "broken", "models"):
    JOBS[_name] = f"{'fake_worker' if __name__ != '__main__' else '__main__'}:{_name}"

if __name__ == "__main__":
    sys.exit(worker.main())
