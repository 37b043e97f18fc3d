"""Sample data of the plugin: phantom patients, made on the spot, no download."""

from __future__ import annotations

from homolog.gui.layers import LayerData, label_layer, volume_layer


def phantom_patient() -> list[LayerData]:
    """A CT-like phantom body with its labels."""
    return _patient(1)


def two_phantom_patients() -> list[LayerData]:
    """Two phantom bodies that differ in shape, to match anatomy between them."""
    return [*_patient(1)[:1], *_patient(2)[:1]]


def _patient(seed: int) -> list[LayerData]:
    from homolog.data.phantom import make_phantom

    phantom = make_phantom(seed)
    return [volume_layer(phantom.volume), label_layer(phantom.labels)]
