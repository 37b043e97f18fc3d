"""Sample data of the plugin: phantom patients, made on the spot, no download."""

from __future__ import annotations

from dataclasses import replace

from homolog.gui.files.layers import LayerData, label_layer, volume_layer

# The two patients of the pair; they differ in size and in the shape of their organs.
_PAIR = (1, 2)


def phantom_patient() -> list[LayerData]:
    """A CT-like phantom body with its labels."""
    from homolog.data.phantom import make_phantom

    phantom = make_phantom(_PAIR[0], name="phantom CT")
    labels = replace(phantom.labels, name="phantom organs")
    return [volume_layer(phantom.volume), label_layer(labels)]


def phantom_mr() -> list[LayerData]:
    """An MR-like phantom body."""
    from homolog.data.phantom_mr import make_mr_phantom

    phantom = make_mr_phantom(_PAIR[0])
    return [volume_layer(replace(phantom.volume, name="phantom MR"))]


def two_phantom_patients() -> list[LayerData]:
    """Two phantom bodies that differ in shape, to match anatomy between them."""
    from homolog.data.phantom import make_phantom

    names = ("phantom patient A", "phantom patient B")
    return [
        volume_layer(make_phantom(seed, name=name).volume)
        for seed, name in zip(_PAIR, names, strict=True)
    ]
