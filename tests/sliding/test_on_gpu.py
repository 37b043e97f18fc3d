"""Windows blended on a GPU; none is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fake_cuda import CUDA, fake_cuda
from homolog.errors import JobError
from homolog.events import drain
from homolog.sliding import on_gpu, windows
from homolog.sliding.sliding import slide
from homolog.sliding.windows import SlidingConfig
from homolog.training.footprint import Held

CLASSES = 5


class Narrow(nn.Module):
    """Answers in bfloat16, as under autocast."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv3d(1, CLASSES, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image).bfloat16()


def test_a_gpu_adds_all_channels_at_once_and_says_the_same() -> None:
    image = torch.randn(1, 20, 24, 24, generator=torch.Generator().manual_seed(1))
    config = SlidingConfig(window=(16, 16, 16), batch=2)
    network = Narrow().eval()
    on_cpu = drain(
        slide(
            network, image, classes=CLASSES, config=config, device=torch.device("cpu")
        )
    )
    with fake_cuda() as told:
        found = drain(
            slide(network.to(CUDA), image, classes=CLASSES, config=config, device=CUDA)
        )
    assert found.sums_on == "cuda:0"
    assert not told.mixed
    assert torch.equal(found.labels, on_cpu.labels)
    assert told.by_op["addcmul_"] == found.windows  # weights are not asked for
    assert sum(told.waits.values()) == 2, "for the labels, and whether all are numbers"


class Split(Narrow):
    """Few features, many classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv3d(CLASSES, 30, 1)

    def features(self, image: Tensor) -> Tensor:
        return super().forward(image)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).float())


def _image(*shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


def _both(network: nn.Module, image: Tensor, classes: int, **changes: Any) -> Any:
    config = SlidingConfig(**{"window": (16, 16, 16), "batch": 3, **changes})
    cpu = torch.device("cpu")
    here = drain(slide(network, image, classes=classes, config=config, device=cpu))
    with fake_cuda() as told:
        network.to(CUDA)
        told.clear()
        there = drain(
            slide(network, image, classes=classes, config=config, device=CUDA)
        )
    assert not told.mixed
    assert torch.equal(here.labels, there.labels)
    return there, told


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("shape", [(20, 24, 50), (51, 20, 16), (17, 64, 16)])
def test_rows_that_move_up_make_the_labels_of_a_ring(
    shape: tuple[int, int, int], overlap: float
) -> None:
    found, told = _both(Split().eval(), _image(*shape), 30, overlap=overlap)
    assert found.blended == "features"
    assert told.by_op["addcmul_"] == found.windows
    assert sum(told.waits.values()) == 2


def test_class_blocks_on_a_gpu_make_the_same_labels() -> None:
    image = _image(20, 24, 40)
    budget = 3 * 16 * 20 * 24 * 4
    found, told = _both(Narrow().eval(), image, CLASSES, budget_bytes=budget)
    assert found.passes > 1
    assert sum(told.waits.values()) == 2


def test_a_row_is_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "VALUES_AT_ONCE", 1000)
    _both(Split().eval(), _image(20, 24, 40), 30)
    _both(Narrow().eval(), _image(20, 24, 40), CLASSES)


def test_a_scan_too_large_for_a_gpu_goes_up_window_by_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "_SHARE_OF_SCAN", 1e-9)
    found, told = _both(Narrow().eval(), _image(20, 24, 40), CLASSES)
    assert told.copies >= found.windows // 3
    assert told.uploads == {}, "pinned, and not waited for"


def test_where_one_window_does_not_fit_the_scan_leaves_the_gpu() -> None:
    class Poor(Narrow):
        failed = 0

        def forward(self, image: Tensor) -> Tensor:
            if image.device.type == "cuda" and self.failed < 3:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
            return super().forward(image)

    network = Poor().eval()
    found, _ = _both(network, _image(20, 24, 40), CLASSES, batch=4)
    assert network.failed == 3  # of four, of two, of one
    assert (found.batch, found.sums_on) == (1, "cuda:0")


def test_values_that_are_not_numbers_are_refused_on_a_gpu() -> None:
    class Odd(Narrow):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) * torch.nan

    config = SlidingConfig(window=(16, 16, 16))
    with fake_cuda():
        network, image = Odd().eval().to(CUDA), _image(20, 24, 24)
        job = slide(network, image, classes=CLASSES, config=config, device=CUDA)
        with pytest.raises(JobError, match="not numbers"):
            drain(job)


@pytest.mark.parametrize("flips", [(), (0, 2)])
@pytest.mark.parametrize("features", [False, True])
def test_what_a_window_holds_is_known_without_numbers(
    flips: tuple[int, ...], features: bool
) -> None:
    class Plain(Split):
        def features(self, image: Tensor) -> Tensor:
            return self.layer(image).relu()

    network, window = Plain().eval().requires_grad_(False), (16, 16, 16)
    config = SlidingConfig(window=window, flips=flips)
    told = windows.pass_bytes(network, 1, window, config, features=features)
    image = torch.zeros(1, 1, *window)
    with Held("cpu") as held, torch.no_grad():
        made = network.features(image) if features else network(image)
    outputs = 3 if flips else 1
    assert told == held.most + 3 * image.nbytes + outputs * made.nbytes


def test_as_many_windows_at_once_as_fit_and_no_more_than_help() -> None:
    network, window = Split().eval(), (16, 16, 16)
    config = SlidingConfig(window=window, batch=None)
    each = windows.pass_bytes(network, 1, window, config, features=False)
    assert each is not None

    def at_once(room: float) -> int:
        return windows.windows_at_once(
            network, 1, window, config, int(room), features=False
        )

    assert at_once(0) == 1
    assert at_once(7.5 * each / 0.85) == 7
    assert at_once(1e12) == windows.BUSY_VOXELS // 16**3
    foreign = lambda image: image  # noqa: E731
    assert windows.windows_at_once(foreign, 1, window, config, 0, features=False) == 4
