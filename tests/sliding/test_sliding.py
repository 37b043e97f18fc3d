import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from each import each
from homolog.errors import JobError
from homolog.events import Note, Request, drain
from homolog.sliding import blending
from homolog.sliding.sliding import slide
from homolog.sliding.windows import SlidingConfig, map_bytes

CPU = torch.device("cpu")
SHAPE, WINDOW = (19, 26, 22), (8, 12, 8)


class SplitNet(nn.Module):
    """Features of a random convolution, a linear head of many classes."""

    def __init__(self, classes: int = 9, features: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv3d(1, features, 3, padding=1)
        self.head = nn.Conv3d(features, classes, 1)
        self.double().eval()
        self.batches: list[int] = []

    def features(self, image):
        self.batches.append(len(image))
        return torch.tanh(self.body(image))

    def forward(self, image):
        return self.head(self.features(image))


def _image(shape=SHAPE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *shape, generator=generator, dtype=torch.float64)


def _ours(network, image, **changes):
    config = SlidingConfig(**{"window": WINDOW, **changes})
    classes = network.head.out_channels if hasattr(network, "head") else 9
    return drain(slide(network, image, classes=classes, config=config, device=CPU))


def _monai(network, image, overlap=0.5, window=WINDOW):
    with torch.no_grad():
        logits = sliding_window_inference(
            image[None], window, 2, network, overlap=overlap, mode="gaussian"
        )
    return logits[0].argmax(0)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("shape", [SHAPE, (8, 12, 8), (40, 13, 9), (5, 30, 6)])
def test_labels_equal_monai_when_features_are_blended(shape, overlap):
    network, image = SplitNet(), _image(shape)
    # a divisor of the window's size keeps it from shrinking, as MONAI never does
    result = _ours(network, image, overlap=overlap, divisor=WINDOW)
    assert result.blended == "features"
    assert torch.equal(result.labels.long(), _monai(network, image, overlap))


@pytest.mark.parametrize("shape", [SHAPE, (40, 13, 9), (5, 30, 6)])
def test_labels_equal_monai_when_logits_are_blended(shape):
    network, image = SplitNet(), _image(shape)

    def black_box(windows):
        return network(windows)

    result = _ours(black_box, image, divisor=WINDOW)
    assert result.blended == "logits"
    assert torch.equal(result.labels.long(), _monai(network, image))


def test_class_blocks_give_the_labels_of_one_pass():
    network, image = SplitNet(), _image()
    whole = _ours(lambda w: network(w), image)
    per_channel = blending.Blend.bytes_needed(0, _grid_of(image), torch.float64)
    blocks = _ours(lambda w: network(w), image, budget_bytes=2 * per_channel)
    assert whole.passes == 1
    assert blocks.passes == 5
    assert torch.equal(blocks.labels, whole.labels)


def _grid_of(image):
    from homolog.sliding.blending import place_windows

    return place_windows(tuple(image.shape[1:]), WINDOW, 0.5)


def test_only_one_window_depth_of_sums_is_held():
    # the long axis is last: the ring lies along it
    grid = _grid_of(_image((12, 14, 80)))
    assert grid.axis == 2
    assert blending.Blend.bytes_needed(3, grid, torch.float32) == 4 * 4 * 12 * 14 * 8


def test_constant_windows_are_predicted_once_with_identical_labels():
    network, image = SplitNet(), _image((24, 36, 24))
    image[:, :, :20] = -1.0
    image[:, 16:] = 0.5
    network.batches.clear()
    skipped = _ours(network, image)
    ran = sum(network.batches)
    everything = _ours(network, image, skip_constant=False)
    assert everything.constant == 0
    assert skipped.constant > 0.4 * skipped.windows
    assert ran == skipped.windows - skipped.constant + 2
    assert torch.equal(skipped.labels, everything.labels)
    assert torch.equal(skipped.labels.long(), _monai(network, image))


def test_body_in_air_runs_at_most_seventy_percent_of_the_windows():
    network, image = SplitNet(), _image((96, 16, 16))
    image[:, :38] = -1.0  # 40 % air
    network.batches.clear()
    result = _ours(network, image, window=(8, 8, 8))
    assert sum(network.batches) <= 0.7 * result.windows
    assert torch.equal(result.labels.long(), _monai(network, image, window=(8, 8, 8)))


def test_small_scan_gets_a_smaller_window_of_legal_size():
    network, image = SplitNet(), _image((5, 9, 30))
    result = _ours(network, image, window=(16, 16, 16), divisor=(4, 4, 4))
    assert result.window == (8, 12, 16)
    assert tuple(result.labels.shape) == (5, 9, 30)


def test_flips_average_the_logits_of_all_mirrorings():
    network, image = SplitNet(), _image(WINDOW)
    with torch.no_grad():
        expected = sum(
            network(image[None].flip(axes)).flip(axes)
            for axes in ([], [2], [4], [2, 4])
        )
    result = _ours(network, image, flips=(0, 2))
    assert torch.equal(result.labels.long(), expected[0].argmax(0))


def test_raw_integers_are_normalised_window_by_window():
    network = SplitNet().float()
    raw = (_image() * 100).round().to(torch.int16)
    config = SlidingConfig(window=WINDOW)
    job = slide(
        network, raw, classes=9, config=config, device=CPU,
        normalise=lambda windows: windows.float() / 50.0,
    )  # fmt: skip
    result = drain(job)
    expected = _ours(network, raw.float() / 50.0)
    assert torch.equal(result.labels, expected.labels)


class Exhausted:
    """A network that runs out of memory on batches above a size."""

    def __init__(self, network, most):
        self.network, self.most, self.head = network, most, network.head
        self.failed = 0

    def _check(self, image):
        if len(image) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    def features(self, image):
        self._check(image)
        return self.network.features(image)

    def __call__(self, image):
        self._check(image)
        return self.network(image)


def test_out_of_memory_in_the_network_halves_the_batch():
    network, image = SplitNet(), _image()
    whole = _ours(network, image)
    poor = Exhausted(network, most=1)
    result = _ours(poor, image, batch=8)
    assert poor.failed == 3
    assert result.batch == 1
    assert torch.equal(result.labels, whole.labels)


def test_out_of_memory_for_the_sums_moves_them_to_the_host(monkeypatch):
    # "meta" stands for a device that cannot hold the sums
    network, image = SplitNet(), _image()
    whole = _ours(network, image)
    allocate = blending.allocate
    asked = []

    def refuse(shape, device, dtype):
        asked.append(device.type)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return allocate(shape, device, dtype)

    monkeypatch.setattr(blending, "allocate", refuse)
    from homolog.sliding import sliding

    first_plan = sliding._Slide._first_plan

    def on_device(self, budget, device):
        plan = first_plan(self, budget, device)
        return sliding.replace(plan, sums_on=torch.device("meta"))

    monkeypatch.setattr(sliding._Slide, "_first_plan", on_device)
    result = _ours(network, image)
    assert asked[0] == "meta"
    assert set(asked[1:]) == {"cpu"}
    assert result.sums_on == "cpu"
    assert result.blended == "features"
    assert torch.equal(result.labels, whole.labels)


def test_out_of_memory_on_the_host_makes_class_blocks_smaller(monkeypatch):
    network, image = SplitNet(), _image()
    whole = _ours(network, image)
    allocate = blending.allocate

    def refuse(shape, device, dtype):
        if shape[0] > 3:  # two classes and the weights
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory (injected)")
        return allocate(shape, device, dtype)

    monkeypatch.setattr(blending, "allocate", refuse)
    config = SlidingConfig(window=WINDOW)
    job = slide(network, image, classes=9, config=config, device=CPU)
    news = []
    try:
        while True:
            news.append(next(job))
    except StopIteration as stop:
        result = stop.value
    assert result.blended == "logits"
    assert result.passes == 5
    assert any(isinstance(n, Note) and "out of memory" in n.text for n in news)
    assert torch.equal(result.labels, whole.labels)


def test_out_of_memory_everywhere_ends_with_a_sentence():
    with pytest.raises(JobError, match="does not suffice for one window"):
        _ours(Exhausted(SplitNet(), most=0), _image())


def test_other_errors_of_the_network_are_not_swallowed():
    def broken(windows):
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        _ours(broken, _image())


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(JobError, match="not numbers"):
        _ours(lambda w: w.expand(-1, 9, -1, -1, -1) * torch.nan, _image())


def test_stop_ends_between_two_windows():
    network = SplitNet()
    config = SlidingConfig(window=(4, 4, 4))
    job = slide(network, _image(), classes=9, config=config, device=CPU)
    next(job)
    with pytest.raises(StopIteration) as stop:
        job.send(Request.STOP)
    assert stop.value.value is None


def test_overlap_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="overlap"):
        _ours(SplitNet(), _image(), overlap=1.0)


class Foreign(nn.Module):
    """A network of someone else, that ends in a 1 x 1 x 1 convolution or nearly so."""

    def __init__(self, after=None):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 1))
        self.out = nn.Sequential(nn.Conv3d(4, 20, 1))
        self.after = after
        self.double().eval()

    def forward(self, image):
        logits = self.out(torch.tanh(self.body(image)))
        return logits if self.after is None else self.after(logits)


def test_foreign_networks_of_many_classes_are_cut_before_their_last_layer():
    network, image = Foreign(), _image()
    config = SlidingConfig(window=WINDOW, divisor=WINDOW)
    job = slide(network, image, classes=20, config=config, device=CPU)
    result = drain(job)
    assert result.blended == "features"
    assert torch.equal(result.labels.long(), _monai(network, image))


@pytest.mark.parametrize(
    "after", [lambda x: x.relu_(), lambda x: x + 1, lambda x: x[:, :20].softmax(1)]
)
def test_foreign_networks_that_go_on_after_it_are_not_cut(after):
    network, image = Foreign(after), _image()
    config = SlidingConfig(window=WINDOW, divisor=WINDOW)
    job = slide(network, image, classes=20, config=config, device=CPU)
    result = drain(job)
    assert result.blended == "logits"
    assert torch.equal(result.labels.long(), _monai(network, image))


LARGER, FREE = (11, 14, 9), (2, 2, 2)  # than WINDOW, by less than half


def test_the_window_follows_a_scan_that_is_not_much_larger():
    network, image = SplitNet(), _image(LARGER)
    assert _ours(network, image).windows == 8
    result = _ours(network, image, follow=FREE)
    assert (result.windows, result.window) == (1, (12, 14, 10))
    # an odd voxel of padding lies before the scan
    padded = torch.nn.functional.pad(image, (1, 0, 0, 0, 1, 0))
    with torch.no_grad():
        expected = network(padded[None])[0].argmax(0)[1:, :, 1:]
    assert torch.equal(result.labels, expected.to(torch.uint8))


@each(
    "shape, window",
    [
        ((8, 12, 8), (8, 12, 8)),
        ((12, 18, 12), (12, 18, 12)),
        ((13, 30, 9), (8, 12, 10)),  # axis by axis
        ((5, 14, 8), (5, 14, 8)),
    ],
)
def test_only_sides_not_much_longer_than_trained_follow(shape, window):
    result = _ours(SplitNet(), _image(shape), follow=FREE)
    assert result.window == window


def test_a_window_too_large_for_the_memory_stays_as_trained():
    network, image = SplitNet(), _image(LARGER)
    result = _ours(network, image, follow=FREE, room_bytes=1000)
    assert (result.windows, result.window) == (8, WINDOW)
    assert torch.equal(result.labels, _ours(network, image).labels)


def test_the_memory_of_all_maps_is_counted_once_per_network():
    network = SplitNet(classes=9, features=4)
    # doubles of four features and nine classes, and what is not seen
    assert map_bytes(network, 1, (8, 8, 8), CPU) == pytest.approx(1.5 * 8 * 13)
    network.batches.clear()
    map_bytes(network, 1, (8, 8, 8), CPU)
    assert network.batches == []


def test_out_of_memory_in_a_window_that_follows_brings_the_trained_one():
    class Poor(SplitNet):
        def features(self, image):
            if image[0, 0].numel() > 8 * 12 * 8:
                raise torch.OutOfMemoryError("CUDA out of memory (injected)")
            return super().features(image)

    image = _image(LARGER)
    config = SlidingConfig(window=WINDOW, follow=FREE)
    job = slide(Poor(), image, classes=9, config=config, device=CPU)
    news = []
    try:
        while True:
            news.append(next(job))
    except StopIteration as stop:
        result = stop.value
    assert (result.windows, result.window) == (8, WINDOW)
    (note,) = (n for n in news if isinstance(n, Note))
    assert note.text == "out of memory; trying again with windows of 8 x 12 x 8 voxels."
    assert torch.equal(result.labels, _ours(SplitNet(), image).labels)
