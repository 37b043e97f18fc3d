"""Started by test_distributed: one process, then two; train, stop, gather, write down.

They are forked once everything is imported (most of the seconds), before anything is
computed; each then finds its group as torchrun would have told it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # as every optimiser does

import homolog.backbones.resunet  # noqa: F401 - as build() does
from homolog import distributed
from homolog.backbones import build
from homolog.errors import JobError
from homolog.events import Job, Request, Saved, Stopped
from homolog.feed.batches import Feed
from homolog.geometry.affine import Affine
from homolog.methods.s2dc import S2DC, S2DCConfig
from homolog.nn.optim import Pace, parameter_groups
from homolog.runs.jobs import JOBS
from homolog.training import validation
from homolog.training.config import TrainingConfig
from homolog.training.loop import train
from memory_store import random_cases
from toy_training import ToyFeed, ToyTrainable, toy
from two_of_each import trained_each

CPU = torch.device("cpu")
GLOBAL_BATCH = 4
validation._SHARE = 1e9  # pictures whatever they cost


def trained(
    model: Any, feed: Any, folder: Path, stop_after: int, draw: Any = None,
    groups: Any = None, **more: Any,
) -> Any:  # fmt: skip
    """Train; (steps told at Stopped, checkpoints written). One process asks to stop."""
    config = TrainingConfig(
        batch_size=feed.batch_size, log_every=1, precision="fp32", **more
    )
    training = train(
        model, feed, config, folder=folder, device=CPU, seed=7, draw=draw,
        parameter_groups=groups,
    )  # fmt: skip
    request, stopped, saved, told = None, 0, 0, 0
    try:
        while True:
            event = training.send(request)
            told += 1
            stopped = event.index if isinstance(event, Stopped) else stopped
            saved += isinstance(event, Saved)
            request = Request.STOP if stop_after and told >= stop_after else None
    except StopIteration:
        return stopped, saved


def s2dc() -> S2DC:
    torch.manual_seed(3)
    config = S2DCConfig(
        size=(16, 16, 16), token_stride=4, head_hidden=16, head_dim=8, queue_length=24
    )
    return S2DC(build("resunet", {"channels": [4, 8, 8]}), config)


def gathered_gradient(here: distributed.World) -> torch.Tensor:
    """Of a loss over all rows of all processes, averaged as DDP does."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(GLOBAL_BATCH, 5, generator=generator)
    weight = torch.randn(5, 3, generator=generator).requires_grad_()
    own = inputs.chunk(here.size)[here.rank]
    rows = distributed.gather_rows_with_gradient(own @ weight)
    (rows @ rows.T).logsumexp(1).mean().backward()
    assert weight.grad is not None
    return distributed.mean_over_ranks(weight.grad)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with distributed.session(CPU, timeout_s=120) as here:
        share = {"rank": here.rank, "world_size": here.size}
        each = GLOBAL_BATCH // here.size
        model = toy(dropout=0.0, norm=False)
        drawn: list[int] = []

        def draw(done: int, left_s: float, most_s: float) -> Any:
            drawn.append(done)
            model.body(torch.rand(2, 1, 4, 4, 4))
            return np.zeros((4, 4, 3), np.uint8), "nothing"

        _, saved = trained(
            model, ToyFeed(each, **share), folder / "toy", 0, draw, steps=20
        )
        torch.save(model.state_dict(), folder / f"toy_{here.rank}.pt")

        model = toy(dropout=0.0, norm=False)
        late = Pace(0.5, 0.4, (0.4,))  # waits without a gradient, then joins
        groups = parameter_groups(
            model, 0.1, pace=lambda n: late if n.startswith("body.") else Pace()
        )
        trained(
            model, ToyFeed(each, **share), folder / "late", 0, groups=groups, steps=20
        )
        torch.save(model.state_dict(), folder / f"late_{here.rank}.pt")

        method = s2dc()
        cases = random_cases([(20, 20, 20)] * 3, Affine.identity())
        feed = Feed(cases, method.views(), batch_size=each, seed=1, **share)
        trained(method, feed, folder / "s2dc", 0, steps=20, learning_rate=1e-3)
        torch.save(method.state_dict(), folder / f"s2dc_{here.rank}.pt")

        # the last process alone is told to stop
        asks = 3 if here.rank == here.size - 1 else 0
        stopped, _ = trained(
            toy(norm=False), ToyFeed(each, **share), folder / "stop", asks, steps=500
        )
        told = {"saved": saved, "drawn": drawn, "stopped_after": stopped}
        (folder / f"told_{here.rank}.json").write_text(json.dumps(told))
        torch.save(gathered_gradient(here), folder / f"gradient_{here.rank}.pt")
        trained_each(here, folder)


class Dying(ToyTrainable):
    """The toy, and one power cut after 13 steps."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark
        self.load_state_dict(toy().state_dict())

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        if int(self.pointer) == 13 and not self.mark.exists():
            self.mark.touch()
            os._exit(9)


class Full(ToyTrainable):
    """The toy on a device that is full after three steps of the second process."""

    def losses(self, views: Any, progress: float) -> Any:
        if distributed.world().rank == 1 and int(self.pointer) == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().losses(views, progress)


def shared_job(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """A run's job that trains the toy with all processes; may die or fail in a step."""
    here = distributed.world()
    torch.set_num_threads(1)
    feed = ToyFeed(2, rank=here.rank, world_size=here.size)
    training = TrainingConfig(
        steps=20, batch_size=2, accumulate=2, log_every=1, checkpoint_every=5,
        dry_run_steps=0, precision="fp32",
    )  # fmt: skip
    died = folder / f"died_{here.rank}"
    model = Dying(died) if config.get("dies") else toy()
    model = Full() if config.get("full") else model
    events = train(model, feed, training, folder=folder, device=CPU, seed=7)
    for event in events:
        if here.rank == 1 and config.get("fails"):
            raise JobError("case 3 could not be read.")
        yield event
    return {"processes": here.size}


def by_command(*words: str) -> int:
    """``homolog WORDS`` as one of the processes of torchrun; its exit status."""
    from homolog.cli import main as homolog

    sys.argv = ["homolog", *words]
    try:
        homolog()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def begun(folder: Path, config: dict[str, Any]) -> int:
    """As ``homolog pretrain`` begins a run."""
    from homolog.cli._run import exit_status, run_in_folder

    try:
        return run_in_folder("shared", config, folder)
    except (JobError, ValueError) as error:
        return exit_status(error)


def resumed(folder: Path) -> int:
    """As ``homolog runs resume`` goes on with it."""
    return by_command("runs", "resume", str(folder))


def member(rank: int, count: int, port: int, act: Any, *given: Any) -> None:
    """One of ``count`` processes, in the environment that torchrun would give it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.exit(act(*given))


def run_processes(count: int, act: Any, *given: Any) -> list[int]:
    """Exit status of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forked = multiprocessing.get_context("fork")
    running = [
        forked.Process(target=member, args=(rank, count, port, act, *given))
        for rank in range(count)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return [int(process.exitcode or 0) for process in running]


def all_of_it(out: Path) -> None:
    """Everything that the tests look at."""
    assert run_processes(1, main, out / "one") == [0]
    assert run_processes(2, main, out / "two") == [0, 0]
    runs = out / "runs"
    ends = {
        "whole": run_processes(2, begun, runs / "whole", {}),
        "killed": run_processes(2, begun, runs / "killed", {"dies": True}),
        "alone": run_processes(1, resumed, runs / "killed"),
        "three": run_processes(3, resumed, runs / "killed"),
        "together": run_processes(2, resumed, runs / "killed"),
        "taken": run_processes(2, begun, runs / "whole", {}),
        "fails": run_processes(2, begun, runs / "fails", {"fails": True}),
        "full": run_processes(2, begun, runs / "full", {"full": True}),
        "info": run_processes(2, by_command, "info", str(out / "nothing.nii.gz")),
    }
    (out / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    JOBS["shared"] = "two_processes:shared_job"
    all_of_it(Path(sys.argv[1]))
