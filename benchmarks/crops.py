"""Crops from the store against reading the file, and against MONAI's balanced crop.

One synthetic CT of 512 x 512 x 300 voxels in a temporary folder. Interleaved, the
minimum of several rounds.

    python benchmarks/crops.py [--rounds 7] [--out benchmarks/results/crops.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import SimpleITK as sitk

from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.phantom.phantom import make_phantom
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store import arrays
from homolog.store.arrays import StoredArray, write_array
from homolog.store.build import write_store
from homolog.store.crops import draw_place, read_box
from homolog.store.store import Store

SHAPE = (300, 512, 512)
SPACING_MM = (1.0, 0.75, 0.75)
SIZE = (96, 96, 96)
BARS = {"read": 30.0, "balanced": 50.0, "touched": 4.0, "stored": 0.35}


def write_ct(folder: Path) -> CaseSource:
    """A phantom of a quarter of the resolution, enlarged, with a scanner's noise."""
    from scipy.ndimage import gaussian_filter

    coarse = tuple(n // 4 for n in SHAPE)
    phantom = make_phantom(0, coarse, tuple(4 * s for s in SPACING_MM), noise=0.0)
    tissue, labels = phantom.volume.data[0], phantom.labels.data
    for axis in range(3):
        tissue, labels = (np.repeat(a, 4, axis=axis) for a in (tissue, labels))
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), 0.7)
    noise *= np.where(tissue > -900, 14.0, 7.0).astype(np.float32) / noise.std()
    y, x = np.ogrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    values = np.where(y**2 + x**2 <= 1, np.rint(tissue + noise), -1024)
    data = np.clip(values, -1024, 3071).astype(np.int16)
    affine = Affine.of(SPACING_MM)
    write_volume(Volume(data[None], affine), folder / "ct.nii.gz")
    write_labels(LabelMap(labels, affine), folder / "ct_label.nii.gz")
    return CaseSource(
        id="ct", image=folder / "ct.nii.gz", label=folder / "ct_label.nii.gz",
        modality="CT", subject="ct", split=None, target=None, boxes=(), label_names={},
    )  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bytes_touched(store: Store, start: tuple[int, ...]) -> int:
    """Compressed bytes of the blocks a crop overlaps, from the chunks' own index."""
    folder = store.path / "cases" / "ct" / "image.b2nd"
    array = blosc2.open(str(folder), mode="r")
    chunks, blocks = array.chunks[1:], array.blocks[1:]
    grid = [-(-n // c) for n, c in zip(SHAPE, chunks, strict=True)]
    inner = [-(-c // b) for c, b in zip(chunks, blocks, strict=True)]
    total = 0
    for place in np.ndindex(*grid):
        origin = [p * c for p, c in zip(place, chunks, strict=True)]
        if not overlaps(origin, chunks, start):
            continue
        chunk = array.schunk.get_chunk(int(np.ravel_multi_index(place, grid)))
        count = int(np.prod(inner))
        if len(chunk) <= 32 + 4 * count:
            total += len(chunk)
            continue
        starts = np.frombuffer(chunk, "<i4", count, 32)
        ends = np.append(np.sort(starts)[1:], len(chunk))
        sizes = ends[np.argsort(np.argsort(starts))] - starts
        for block in np.ndindex(*inner):
            at = [o + i * b for o, i, b in zip(origin, block, blocks, strict=True)]
            if overlaps(at, blocks, start):
                total += int(sizes[np.ravel_multi_index(block, inner)])
    return total


def overlaps(at: list[int], size: tuple[int, ...], start: tuple[int, ...]) -> bool:
    ends = zip(at, size, start, SIZE, strict=True)
    return all(a < s + n and s < a + length for a, length, s, n in ends)


def crop_bytes(store: Store, start: tuple[int, ...], folder: Path) -> int:
    """What the crop would take as a file of its own."""
    path = folder / "crop.b2nd"
    write_array(read_box(store.image("ct"), start, SIZE, -1024), path)
    return path.stat().st_size


def checksum_cost(store: Store, rounds: int, crops: int = 300) -> dict[str, float]:
    """What comparing chunks with their checksums adds, as shares of processor time.

    Each round reads the same crops of a file that this process has not seen, once with
    checksums and once without.
    """
    card = store.card("ct")
    path = store.path / "cases" / "ct" / "image.b2nd"
    shape = (1, *card.shape)
    times: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    for seed in range(rounds):
        for name, sums in (("with", card.checksums["image.b2nd"]), ("without", "")):
            arrays._known.clear()
            arrays._LOCAL.open.clear()
            array = StoredArray(path, shape, path.stat().st_size, sums)
            rng = np.random.default_rng(seed)
            start = [
                tuple(
                    int(rng.integers(n - s)) for n, s in zip(SHAPE, SIZE, strict=True)
                )
                for _ in range(crops)
            ]
            began = time.process_time()
            for place in start[:20]:
                read_box(array, place, SIZE, card.fill)
            early = time.process_time()
            for place in start[20:]:
                read_box(array, place, SIZE, card.fill)
            times[name].append((early - began, time.process_time() - began))
    first, whole = (
        min(t[i] for t in times["with"]) / min(t[i] for t in times["without"]) - 1
        for i in (0, 1)
    )
    return {"checksums_first_20_crops": first, f"checksums_{crops}_crops": whole}


def ratios(folder: Path, rounds: int) -> dict[str, float]:
    from monai.transforms import RandCropByPosNegLabeld

    source = write_ct(folder)
    prepared = seconds(lambda: drain(write_store([source], folder / "store")))
    store = Store.open(folder / "store")
    card = store.card("ct")
    rng = np.random.Generator(np.random.Philox(0))

    def random_start() -> tuple[int, ...]:
        return tuple(int(rng.integers(n - s)) for n, s in zip(SHAPE, SIZE, strict=True))

    def balanced() -> None:
        place = draw_place(store, card, rng, 1.0)
        start = [round(p - s / 2) for p, s in zip(place, SIZE, strict=True)]
        read_box(store.image("ct"), start, SIZE, card.fill)
        label = store.label("ct")
        assert label is not None
        read_box(label, start, SIZE, 0)

    peer = RandCropByPosNegLabeld(
        keys=["image", "label"], label_key="label", spatial_size=SIZE, pos=1, neg=0
    )
    loaded = {
        "image": np.asarray(store.image("ct")),
        "label": np.asarray(store.label("ct"))[None],
    }
    times: dict[str, list[float]] = {
        "file": [],
        "crop": [],
        "monai": [],
        "balanced": [],
    }
    for _ in range(rounds):
        times["file"].append(
            seconds(lambda: sitk.GetArrayFromImage(sitk.ReadImage(str(source.image))))
        )
        times["crop"] += [
            seconds(
                lambda: read_box(store.image("ct"), random_start(), SIZE, card.fill)
            )
            for _ in range(5)
        ]
        times["monai"].append(seconds(lambda: peer(loaded)))
        times["balanced"] += [seconds(balanced) for _ in range(5)]
    starts = [random_start() for _ in range(8)]
    touched = [bytes_touched(store, s) / crop_bytes(store, s, folder) for s in starts]
    best = {name: min(values) for name, values in times.items()}
    cost = checksum_cost(store, rounds)
    stored = (store.path / "cases" / "ct" / "image.b2nd").stat().st_size
    return {
        "prepare_s": prepared,
        "read_nii_gz_s": best["file"],
        "crop_s": best["crop"],
        "crop_median_s": float(np.median(times["crop"])),
        "read_ratio": best["file"] / best["crop"],
        "monai_balanced_s": best["monai"],
        "balanced_s": best["balanced"],
        "balanced_ratio": best["monai"] / best["balanced"],
        "bytes_touched_over_own": float(np.mean(touched)),
        "bytes_touched_over_own_worst": float(np.max(touched)),
        **cost,
        "stored_over_raw": stored / (2 * float(np.prod(SHAPE))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = ratios(Path(folder), options.rounds)
    met = {
        "read": result["read_ratio"] >= BARS["read"],
        "balanced": result["balanced_ratio"] >= BARS["balanced"],
        "touched": result["bytes_touched_over_own"] <= BARS["touched"],
        "stored": result["stored_over_raw"] <= BARS["stored"],
    }
    report = {
        **{name: round(value, 5) for name, value in result.items()},
        "bars": BARS, "met": met, "rounds": options.rounds,
        "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
