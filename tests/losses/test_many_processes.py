"""What crosses samples is the same for one process and for two (gloo)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from homolog.losses.sinkhorn import balanced_codes
from homolog.nn.queue import FeatureQueue


def scores_and_keys() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(8, 6, generator=generator, dtype=torch.float64)
    keys = torch.randn(8, 4, generator=generator)
    return scores, torch.nn.functional.normalize(keys, dim=1)


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    scores, keys = (t.chunk(2)[rank] for t in scores_and_keys())
    queue = FeatureQueue(6, 4)
    queue.enqueue(keys)
    torch.save(
        {"codes": balanced_codes(scores, 0.05, 5), "queue": queue.state_dict()},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


def test_e_t11_two_processes_make_the_codes_and_the_queue_of_one(
    tmp_path: Path,
) -> None:
    processes.spawn(half, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    scores, keys = scores_and_keys()
    codes = torch.cat([part["codes"] for part in parts])
    torch.testing.assert_close(codes, balanced_codes(scores, 0.05, 5))
    whole = FeatureQueue(6, 4)
    whole.enqueue(keys)
    for part in parts:
        for name, value in whole.state_dict().items():
            assert torch.equal(part["queue"][name], value)
