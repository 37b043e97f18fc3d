"""Windows blended on a GPU; none is needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fake_cuda import CUDA, fake_cuda
from homolog.events import drain
from homolog.sliding.sliding import SlidingConfig, slide

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
    # one for the values and one for the weights, of a window in one or two parts
    assert told.by_op["addcmul_"] <= 2 * found.windows
