"""A pretended GPU: real numbers on the CPU, but every tensor has a side.

``with fake_cuda() as report:`` makes ``cuda`` a device that exists. Tensors sent or
made there compute on the CPU as always, but are remembered as the device's, say so
(``tensor.device``), and mark what is made of them. What a real GPU would refuse is
written down (``report.mixed``), what it would wait for is counted (``report.waits``),
and so are the kernels it would be sent (``report.kernels``).

Not seen: kernels that CUDA lacks (except integer matrix products), numbers that differ,
memory, streams. Make batches in the calling thread (``Feed(threads=0)``): the modes are
of one thread.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten

_WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "equal", "is_nonzero", "bincount",
    "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_cholesky_ex",
    "masked_scatter", "_assert_async", "_linalg_check_errors", "histc",
}  # fmt: skip
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "addmv", "convolution"}
_FREE = {  # no kernel
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice",
    "select", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "split",
    "split_with_sizes", "unbind", "narrow", "diagonal", "unfold", "_reshape_alias",
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided",
    "lift_fresh", "detach_", "_local_scalar_dense", "is_same_size", "set_",
    "view_as_real", "movedim", "chunk", "sym_size", "_version", "unsafe_split",
}  # fmt: skip
# What autocast widens on CUDA, whatever it does on a CPU (``autocast_mode.h``): types
# that differ afterwards are refused by some operations.
_WIDENED = {
    "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow",
    "__pow__", "__rpow__", "softplus", "layer_norm", "group_norm", "norm",
    "cosine_similarity", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss",
    "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist", "pdist",
    "cdist", "renorm", "logsumexp", "prod", "softmax", "log_softmax", "cumprod",
    "cumsum", "vector_norm", "matrix_norm", "sum", "cross_entropy", "interpolate",
}  # fmt: skip
_NARROW = (torch.bfloat16, torch.float16)
# Tensors that one launch of a kernel over lists takes, by the number of its lists
# (``MultiTensorApply.cuh``, ``Shape.cu``).
_AT_ONCE = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
_JOINED_AT_ONCE = 128


def launches(func: Any, args: Any, kwargs: Any) -> int:
    """Kernels that an operation on the device is sent as, at least."""
    name = func._schema.name.split("::")[1]
    if name in _FREE or func.is_view:
        return 0
    lists = [
        a
        for a in (*args, *kwargs.values())
        if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)
    ]
    if name == "cat" or name == "stack":
        return -(-len(lists[0]) // _JOINED_AT_ONCE) if lists else 0
    if not lists or not name.startswith(("_foreach", "_fused")):
        return 1
    if not all(_alike(row) for row in zip(*lists, strict=False)):
        return len(lists[0])  # one by one
    return -(-len(lists[0]) // _AT_ONCE.get(len(lists), 24))


def _alike(row: Sequence[Tensor]) -> bool:
    """Whether the kernel over lists takes these; counts of steps are of none."""
    wide = [t for t in row if t.ndim > 0 or len(row) == 1]
    return all(t.stride() == wide[0].stride() for t in wide)


def _wide(value: Any) -> Any:
    narrow = isinstance(value, Tensor) and value.dtype in _NARROW
    return value.float() if narrow else value


@dataclass
class Report:
    """What a GPU would have said.

    Attributes:
        mixed: Operations with tensors of both sides, or host reads that CUDA refuses.
        waits: Place in the code -> times the host waited for the device.
        uploads: Place -> blocking copies up (pageable, or not ``non_blocking``).
        kernels: Device operations that launch something.
        by_op: The same by name.
        copies: Copies up that need not be waited for.
        places: The same by place in the code, for who looks for some; slow.
    """

    mixed: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    kernels: int = 0
    by_op: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    places: Counter[str] | None = None

    def clear(self) -> None:
        """Forget the counts, keep what was mixed."""
        self.waits.clear(), self.uploads.clear(), self.by_op.clear()
        self.kernels = self.copies = 0
        if self.places is not None:
            self.places.clear()


class _Sides:
    """Which storages are the device's, which are pinned: told by the storage itself."""

    @staticmethod
    def of(tensor: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()

    @staticmethod
    def key(tensor: Tensor) -> int:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata

    def on_device(self, tensor: Tensor) -> bool:
        return getattr(self.of(tensor), "side", "") == "device"

    def is_pinned(self, tensor: Tensor) -> bool:
        return getattr(self.of(tensor), "side", "") == "pinned"

    def put(self, tensor: Tensor, on_device: bool, pinned: bool = False) -> None:
        # torch keeps a storage's Python object, and what is set on it, while it lives
        self.of(tensor).side = "device" if on_device else "pinned" if pinned else "host"


def _where() -> str:
    """The innermost line of homolog's code that led here."""
    frame, last = sys._getframe(2), "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if "/homolog/" in name:
            short = name.rsplit("/homolog/", 1)[1]
            return f"{short}:{frame.f_lineno} {frame.f_code.co_name}"
        if last == "?" and "fake_cuda" not in name and "/torch/" not in name:
            last = f"{name.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return last


def _called_by_torch() -> bool:
    frame = sys._getframe(2)
    while frame is not None and "fake_cuda" in frame.f_code.co_filename:
        frame = frame.f_back
    name = "" if frame is None else frame.f_code.co_filename
    return "/torch/" in name and not name.endswith("nn/modules/module.py")


def _as_device(value: Any) -> torch.device | None:
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"):
        return torch.device(value)
    return None


class _Back(TorchDispatchMode):
    """Sides of results, mixtures, waits, kernels."""

    def __init__(self, sides: _Sides, report: Report, front: _Front) -> None:
        super().__init__()
        self.sides, self.report, self.front = sides, report, front

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        flat = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        up = [self.sides.on_device(t) for t in flat]
        any_up = any(up)
        if any_up:
            self._look(func, name, args, kwargs, flat, up)
        result = func(*args, **kwargs)
        target = any_up if flat else self.front.ambient
        inputs = {self.sides.key(t) for t in flat}
        for out in tree_leaves(result):
            if isinstance(out, Tensor) and self.sides.key(out) not in inputs:
                self.sides.put(out, target)
        if target and (any_up or not flat):
            count = launches(func, args, kwargs)
            self.report.kernels += count
            if count:
                self.report.by_op[name] += count
                if self.report.places is not None:
                    self.report.places[f"{_where()} {name}"] += count
        return result

    def _look(self, func, name, args, kwargs, flat, up) -> None:
        report = self.report
        host = [t for t, s in zip(flat, up, strict=True) if not s]
        indexing = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        if name == "copy_":
            if host:
                mine = self.sides.on_device(args[0])
                if mine and not self.sides.is_pinned(args[1]):
                    report.uploads[f"{_where()} copy_"] += 1
                elif not mine:
                    report.waits[f"{_where()} copy_ down"] += 1
            return
        if indexing:
            rest = [i for i in args[1] if isinstance(i, Tensor)]
            if any(i.dtype in (torch.bool, torch.uint8) for i in rest) and not (
                name != "index" and args[2].numel() == 1
            ):
                report.waits[f"{_where()} mask index"] += 1
            for i in rest:
                if not self.sides.on_device(i):
                    report.uploads[f"{_where()} host index"] += 1
            host = [t for t in host if not any(t is i for i in rest)]
        pointwise = torch.Tag.pointwise in func.tags or name in (
            "where", "masked_fill", "masked_fill_", "lerp", "lerp_", "clamp", "fill_",
        ) or name.startswith("_foreach")  # fmt: skip
        odd = [t for t in host if t.ndim > 0 or not pointwise]
        if odd and name not in ("_to_copy", "is_same_size"):
            shapes = [
                (tuple(t.shape), "dev" if s else "HOST")
                for t, s in zip(flat, up, strict=True)
            ]
            report.mixed[f"{_where()} {name} {shapes}"] += 1
        elif host and name == "fill_" and self.sides.on_device(args[0]):
            pass  # fill_ with a host scalar: the value is read on the host
        if name in _WAITS and not self.front.quiet:
            report.waits[f"{_where()} {name}"] += 1
        if name == "repeat_interleave" and "output_size" not in kwargs:
            report.waits[f"{_where()} repeat_interleave"] += 1
        if name in _PRODUCTS and not flat[0].is_floating_point():
            report.mixed[f"{_where()} {name} of integers: not on CUDA"] += 1


class _Front(TorchFunctionMode):
    """The names of devices, and what reads a tensor behind the dispatcher's back."""

    def __init__(self, sides: _Sides, report: Report) -> None:
        super().__init__()
        self.sides, self.report = sides, report
        self.ambient = False  # side of tensors made of nothing
        self.quiet = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            which = getattr(getattr(func, "__self__", None), "__name__", "")
            if which in ("device", "is_cuda", "is_cpu"):
                up = self.sides.on_device(args[0])
                known = {"device": CUDA if up else CPU, "is_cuda": up, "is_cpu": not up}
                return known[which]
            return func(*args, **kwargs)
        if name in ("to", "cuda", "cpu") and args and isinstance(args[0], Tensor):
            return self._move(func, name, args, kwargs)
        if name in ("numpy", "__array__") and self.sides.on_device(args[0]):
            self.report.mixed[f"{_where()} {name}() of a device tensor"] += 1
        if name == "tolist" and self.sides.on_device(args[0]):
            self.report.waits[f"{_where()} tolist"] += 1
        if name == "is_pinned":
            return self.sides.is_pinned(args[0])
        if name == "pin_memory":
            if self.sides.on_device(args[0]):
                self.report.mixed[f"{_where()} pin_memory of a device tensor"] += 1
            copy = args[0].clone()
            self.sides.put(copy, False, pinned=True)
            return copy
        if name == "_parse_to" or func is torch.device:
            return func(*args, **kwargs)
        asked = _as_device(kwargs.get("device"))
        if asked is not None:
            kwargs["device"] = CPU
        args = tree_map(lambda a: CPU if _is_cuda(a) else a, args)
        made_by = kwargs.get("generator")
        if made_by is not None and asked is not None and asked.type == "cuda":
            self.report.mixed[f"{_where()} {name}: CPU generator, device result"] += 1
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        kept = self.ambient, self.quiet
        up = any(self.sides.on_device(t) for t in tensors)
        if up and name in _WIDENED and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_wide, (args, kwargs))
        self.ambient = (
            asked.type == "cuda"
            if asked is not None
            else up or (self.ambient and bool(tensors))
        )
        self.quiet = self.quiet or name == "one_hot"
        try:
            result = func(*args, **kwargs)
        finally:
            self.ambient, self.quiet = kept
        if name in ("tensor", "as_tensor", "from_numpy", "new_tensor", "asarray"):
            down = name == "from_numpy"
            device = (asked is not None and asked.type == "cuda") or (
                name == "new_tensor" and asked is None and up
            )
            self.sides.put(result, device and not down)
            if device:
                self.report.uploads[f"{_where()} {name}(values)"] += 1
        elif asked is not None:
            for out in tree_leaves(result):
                if isinstance(out, Tensor):
                    self.sides.put(out, asked.type == "cuda")
        return result

    def _move(self, func, name, args, kwargs):
        tensor, *rest = args
        was = now = self.sides.on_device(tensor)
        if name in ("cuda", "cpu"):
            now, rest = name == "cuda", []
            kwargs.pop("device", None)
        else:
            other = rest[0] if rest else kwargs.get("device")
            if isinstance(other, Tensor):
                now = self.sides.on_device(other)
            elif (device := _as_device(other)) is not None:
                now = device.type == "cuda"
        if was != now and _called_by_torch():
            now = was  # torch asked the real device
        blocking = not kwargs.get("non_blocking", False)
        rest = [CPU if _is_cuda(r) else r for r in rest]
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        kept, self.ambient = self.ambient, now
        try:
            result = (
                tensor if name in ("cuda", "cpu") else func(tensor, *rest, **kwargs)
            )
            if was == now:
                return result
            if self.sides.key(result) == self.sides.key(tensor):
                result = result.clone()
        finally:
            self.ambient = kept
        if was:
            self.report.waits[f"{_where()} copy down"] += 1
        elif blocking or not self.sides.is_pinned(tensor):
            kind = "blocking" if blocking else "not pinned"
            size = "" if tensor.nbytes < 65536 else f" {tensor.nbytes >> 10} KiB"
            self.report.uploads[f"{_where()} {name} {kind}{size}"] += 1
        if not was:
            self.report.copies += 1
        self.sides.put(result, now)
        return result


def _is_cuda(value: Any) -> bool:
    device = _as_device(value)
    return device is not None and device.type == "cuda"


@contextlib.contextmanager
def fake_cuda(capability: tuple[int, int] = (8, 0)) -> Iterator[Report]:
    """Pretend that there is one GPU, of a compute capability."""
    sides, report = _Sides(), Report()
    front = _Front(sides, report)
    back = _Back(sides, report, front)
    real_autocast = torch.autocast.__init__
    real_fork = torch.random.fork_rng

    def autocast(self, device_type, *args, **kwargs):
        real_autocast(
            self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs
        )

    def fork(devices=None, **kwargs):
        return real_fork(devices=[], **kwargs)

    nothing = {
        "empty_cache": None,
        "synchronize": None,
        "reset_peak_memory_stats": None,
    }
    with contextlib.ExitStack() as stack:
        patch = mock.patch.object
        for name in nothing:
            stack.enter_context(patch(torch.cuda, name, lambda *_: None))
        for name, value in {
            "is_available": True, "device_count": 1, "is_bf16_supported": True,
            "max_memory_allocated": 0, "current_device": 0,
            "get_device_capability": capability,
        }.items():  # fmt: skip
            stack.enter_context(patch(torch.cuda, name, lambda *_, v=value, **__: v))
        stack.enter_context(
            patch(torch.cuda, "mem_get_info", lambda *_: (8 << 30, 8 << 30))
        )
        stack.enter_context(patch(torch.autocast, "__init__", autocast))
        stack.enter_context(patch(torch.random, "fork_rng", fork))
        stack.enter_context(back)
        stack.enter_context(front)
        yield report
