"""A few words on a picture, without a font library: capitals and digits of 5 x 7."""

from __future__ import annotations

import numpy as np

from homolog.drawing.pictures import Picture
from homolog.geometry.affine import Triple

# Five columns per sign, the lowest bit on top: the font of old liquid crystal displays.
_SIGNS = {
    "0": "3e5149453e", "1": "00427f4000", "2": "4261514946", "3": "2141454b31",
    "4": "1814127f10", "5": "2745454539", "6": "3c4a494930", "7": "0171090503",
    "8": "3649494936", "9": "064949291e", "A": "7e1111117e", "B": "7f49494936",
    "C": "3e41414122", "D": "7f4141221c", "E": "7f49494941", "F": "7f09090901",
    "G": "3e4149497a", "H": "7f0808087f", "I": "00417f4100", "J": "2040413f01",
    "K": "7f08142241", "L": "7f40404040", "M": "7f020c027f", "N": "7f0408107f",
    "O": "3e4141413e", "P": "7f09090906", "Q": "3e4151215e", "R": "7f09192946",
    "S": "4649494931", "T": "01017f0101", "U": "3f4040403f", "V": "1f2040201f",
    "W": "3f4038403f", "X": "6314081463", "Y": "0708700807", "Z": "6151494543",
    "-": "0808080808", ".": "0060600000", "_": "4040404040", " ": "0000000000",
    "+": "08083e0808", "/": "2010080402", ":": "0036360000", ",": "0050300000",
    "?": "0201510906",
}  # fmt: skip
WIDTH, HEIGHT = 6, 8


def with_words(
    picture: Picture,
    words: str,
    place: tuple[int, int],
    colour: Triple = (1.0, 1.0, 1.0),
) -> Picture:
    """Words written on a picture; what does not fit is cut off.

    Args:
        picture: (h, w, 3) in 0..1.
        words: Small letters become capitals, unknown signs question marks.
        place: Upper left corner, pixels down and right.
        colour: Of the strokes.
    """
    result = picture.copy()
    top, left = place
    for sign in words.upper():
        ink = _ink(sign)
        rows = slice(top, min(top + ink.shape[0], picture.shape[0]))
        columns = slice(left, min(left + ink.shape[1], picture.shape[1]))
        area = result[rows, columns]
        area[ink[: area.shape[0], : area.shape[1]]] = colour
        left += WIDTH
    return result


def _ink(sign: str) -> np.ndarray:
    """(7, 5) where a sign has strokes."""
    columns = bytes.fromhex(_SIGNS.get(sign, _SIGNS["?"]))
    return np.array([[bool(c >> row & 1) for c in columns] for row in range(7)])
