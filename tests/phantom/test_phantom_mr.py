"""The MR look of the phantom: same anatomy, other grey values, the same every time."""

from __future__ import annotations

import numpy as np

from homolog.phantom.phantom import make_mr_phantom, make_phantom

SMALL = {"shape": (24, 28, 28), "spacing_mm": (10.0, 10.0, 10.0)}


def test_the_mr_phantom_is_its_patient_in_other_values() -> None:
    ct, mr = make_phantom(4, **SMALL), make_mr_phantom(4, **SMALL)
    assert mr.volume.modality == "MR"
    assert mr.volume.affine == ct.volume.affine
    assert np.array_equal(mr.labels.data, ct.labels.data)
    data = mr.volume.data
    assert data.dtype == np.int16
    assert data.min() >= 0
    again = make_mr_phantom(4, **SMALL).volume.data
    assert np.array_equal(data, again)
    # Fat is bright and blood dark, unlike in CT.
    blood = data[0][mr.labels.data == 9].mean()
    liver = data[0][mr.labels.data == 1].mean()
    assert blood < 0.6 * liver
