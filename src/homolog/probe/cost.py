"""What an encoder costs: seconds for a scan, and the memory that it takes for it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from homolog.features.embed import DenseEncoder, scan_of_case, slide, unit_of
from homolog.feed.reading import CaseRef
from homolog.training.stepping import autocast, resolve_precision

# A window is computed again, until so many seconds were measured.
_ENOUGH_S, _MOST = 1.0, 5


@torch.inference_mode()
def cost_of(encoder: DenseEncoder, case: CaseRef) -> dict[str, Any]:
    """Measure an encoder on a window of a case: maps kept from before hide no cost.

    Args:
        encoder: As it embeds.
        case: Whose size is taken.

    Returns:
        ``seconds_per_scan`` (the time of a window times the windows of this case),
        ``windows``, ``memory_bytes`` (weights and the most maps alive at once; what a
        convolution needs within is not counted on a CPU), ``parameters``, ``numbers``
        (of a feature).
    """
    scan, _ = scan_of_case(case.store, case.card, encoder.learnt)
    embedder, device = encoder.embedder, encoder.device
    sliding = slide(scan.shape, encoder.window, unit_of(embedder),
                    encoder.config.overlap)  # fmt: skip
    start = sliding.starts[len(sliding.starts) // 2]
    image = torch.from_numpy(scan.window(start, sliding.window))[None].to(device)
    precision = resolve_precision(encoder.config.precision, device, embedder)
    with autocast(device, precision):
        memory = _memory(embedder, image, device)
        times: list[float] = []
        while not times or (sum(times) < _ENOUGH_S and len(times) < _MOST):
            began = time.perf_counter()
            embedder(image)
            _wait(device)
            times.append(time.perf_counter() - began)
    weights = list(embedder.parameters())
    return {
        "seconds_per_scan": min(times) * len(sliding.starts),
        "windows": len(sliding.starts),
        "memory_bytes": memory + sum(p.numel() * p.element_size() for p in weights),
        "parameters": sum(p.numel() for p in weights),
        "numbers": sum(encoder.sizes),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(embedder: torch.nn.Module, image: Tensor, device: torch.device) -> int:
    """The most bytes that maps of one window take at once, the window with them."""
    if device.type == "cuda":
        before = int(torch.cuda.memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        embedder(image)
        _wait(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    alive = _Alive(embedder)
    with alive:
        embedder(image)
    return int(alive.most) + image.numel() * image.element_size()


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made that are still there.

    Attributes:
        most: The most at one time.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        state = module.state_dict().values()
        self._known = {t.untyped_storage().data_ptr() for t in state}
        self._alive: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._known:
                    kept: Any = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self._alive[kept.cdata] = kept, storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return made
