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
from homolog.backbones._base import build
from homolog.events import Request, Saved, Stopped
from homolog.feed import Feed
from homolog.geometry.affine import Affine
from homolog.methods.s2dc import S2DC, S2DCConfig
from homolog.training import TrainingConfig, previews, train
from memory_store import random_cases
from toy_training import ToyFeed, toy

CPU = torch.device("cpu")
GLOBAL_BATCH = 4
previews._SHARE = 1e9  # pictures whatever they cost


def trained(
    model: Any, feed: Any, folder: Path, stop_after: int, draw: Any = None, **more: Any
) -> Any:
    """Train; (steps told at Stopped, checkpoints written). One process asks to stop."""
    config = TrainingConfig(
        batch_size=feed.batch_size, log_every=1, precision="fp32", **more
    )
    training = train(model, feed, config, folder=folder, device=CPU, seed=7, draw=draw)
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


def member(rank: int, count: int, port: int, folder: Path) -> None:
    """One of ``count`` processes, in the environment that torchrun would give it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    main(folder)


def run_processes(count: int, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forked = multiprocessing.get_context("fork")
    running = [
        forked.Process(target=member, args=(rank, count, port, folder))
        for rank in range(count)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0, f"process {process.name} failed"


if __name__ == "__main__":
    run_processes(1, Path(sys.argv[1]) / "one")
    run_processes(2, Path(sys.argv[1]) / "two")
