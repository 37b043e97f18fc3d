"""What crosses samples is the same for one process and for two (gloo)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from homolog.losses.assignment import balanced_codes
from homolog.losses.similarity import cross_correlation, redundancy
from homolog.nn.memory_bank import Clustering, FeatureQueue, OfflineClustering


def scores_and_keys() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(8, 6, generator=generator, dtype=torch.float64)
    keys = torch.randn(8, 4, generator=generator)
    return scores, torch.nn.functional.normalize(keys, dim=1)


def identity(rows: Tensor, weight: Tensor) -> Tensor:
    """The identity term of rows (M, 4), two views made by a weight (4, 3)."""
    a, b = rows @ weight, rows.roll(1, 1) @ weight
    return torch.stack(redundancy(cross_correlation(a, b), 0.1)).sum()


def correlated(rank: int | None) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the weight, from half of the rows or from all."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(12, 4, generator=generator, dtype=torch.float64) + 1.0
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    # processes may hold different numbers of rows
    own = rows if rank is None else (rows[:5], rows[5:])[rank]
    loss = identity(own, weight)
    loss.backward()
    assert weight.grad is not None
    return loss.detach(), weight.grad


def clustered(rank: int | None) -> tuple[Tensor, Clustering]:
    """Loss of a second step, when the queue is full; own rows or all."""
    torch.manual_seed(3)
    made = Clustering(4, 3, queue_length=8)
    for step in range(2):
        views = []
        for k in range(3):
            generator = torch.Generator().manual_seed(10 * step + k)
            rows = torch.randn(8, 4, generator=generator)
            rows = torch.nn.functional.normalize(rows, dim=1)
            views.append(rows if rank is None else rows.chunk(2)[rank])
        loss = made(views)
        made.after_step()
    return loss.detach(), made


def remembered(rank: int | None) -> tuple[Tensor, OfflineClustering]:
    """Loss of a step after a clustering, when only some samples have a target."""
    torch.manual_seed(4)
    made = OfflineClustering(4, (3, 5), samples=30, every=3)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        samples = torch.randint(12 if step < 3 else 30, (8,), generator=generator)
        views = [
            torch.nn.functional.normalize(torch.randn(8, 4, generator=generator), dim=1)
            for _ in range(3)
        ]
        if rank is not None:
            samples = samples.chunk(2)[rank]
            views = [view.chunk(2)[rank] for view in views]
        loss = made(views, samples)
        made.after_step()
    return loss.detach(), made


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    scores, keys = (t.chunk(2)[rank] for t in scores_and_keys())
    queue = FeatureQueue(6, 4)
    queue.enqueue(keys)
    loss, gradient = correlated(rank)
    swapped, clustering = clustered(rank)
    offline, bank = remembered(rank)
    torch.save(
        {
            "offline": offline,
            "bank": bank.state_dict(),
            "swapped": swapped,
            "clustering": clustering.state_dict(),
            "loss": loss,
            "gradient": gradient,
            "codes": balanced_codes(scores, 0.05, 5),
            "queue": queue.state_dict(),
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


def test_e_t11_two_processes_make_the_codes_the_queue_and_the_loss_of_one(
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
    loss, gradient = correlated(None)
    for part in parts:
        torch.testing.assert_close(part["loss"], loss)
    # DDP averages what each process found
    mean = (parts[0]["gradient"] + parts[1]["gradient"]) / 2
    torch.testing.assert_close(mean, gradient)
    swapped, clustering = clustered(None)
    torch.testing.assert_close((parts[0]["swapped"] + parts[1]["swapped"]) / 2, swapped)
    for part in parts:
        for name, value in clustering.state_dict().items():
            torch.testing.assert_close(part["clustering"][name], value)
    offline, bank = remembered(None)
    assert offline > 0
    torch.testing.assert_close((parts[0]["offline"] + parts[1]["offline"]) / 2, offline)
    assert parts[0]["offline"] != parts[1]["offline"]
    for name, value in bank.state_dict().items():
        assert torch.equal(parts[0]["bank"][name], parts[1]["bank"][name])
        torch.testing.assert_close(parts[0]["bank"][name], value)
