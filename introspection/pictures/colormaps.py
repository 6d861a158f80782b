"""Colours for numbers: five maps from [0, 1] to RGB, as small tables interpolated in numpy.

viridis, inferno and magma (Smith and van der Walt, CC0) and coolwarm (Moreland 2009) are 33 colours each,
evenly spaced over matplotlib's 256 and at most 2 of 255 away from them between. jet is a formula; it is
here for those who ask for it, because it makes edges where there are none.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from introspection.quantity import ColormapName

COLORMAPS: tuple[ColormapName, ...] = get_args(ColormapName)

_CONTROL_POINTS = {
    "viridis": (
        "440154470d6048186a482374472d7b4536814240863f49893b528b375a8d33638d"
        "2f6a8e2c728e297a8e26818e23898e21908c1f988b1f9f8821a68528ae8031b57b"
        "3ebc744cc26c5dc9636ece5882d34c96d83fabdc32c0df24d5e21aeae51afde725"
    ),
    "inferno": (
        "0000040403120b0724150b37210c4a2e0a5a3c09654a0c6b57106d63146e70196e"
        "7d1e6d89226a962766a32b61af315cbb3755c63e4dd14644db4f3be35932eb6528"
        "f1711ef67f14f98d0afb9c06fcab0ffbba1ff9ca32f5d949f2e865f3f586fcffa4"
    ),
    "magma": (
        "0000040303110a0822130d331d114628115a36106a430f7650127c5d177f691c81"
        "7621818226818f2a819c2e7fa9327db63779c33b75cf4170db486ae65163ee5c5e"
        "f5695cf9785dfb8761fd9668fea571feb47bfec387fed194fde0a2fceeb0fcfdbf"
    ),
    "coolwarm": (
        "3b4cc0445acc4d68d75775e16282ea6c8ef1779af782a5fb8db0fe98b9ffa3c2fe"
        "aec9fcb8d0f9c2d5f4ccd9eed5dbe6dddddde5d8d1ecd3c5f1ccb9f4c4adf7bba0"
        "f7b194f7a687f49a7bf18d6fec7f63e57058de604dd55042cb3e38c0282fb40426"
    ),
}


def colorize(values: NDArray[np.floating], name: ColormapName) -> NDArray[np.float64]:
    """Return RGB, 0 .. 255, [..., 3], for values in [0, 1]; values outside are clipped, NaN stays NaN."""
    unit = np.clip(np.asarray(values, np.float64), 0, 1)
    if name == "jet":
        distance: NDArray[np.float64] = np.abs(4 * unit[..., None] - np.array([3.0, 2.0, 1.0]))
        return np.clip(255 * (1.5 - distance), 0, 255)
    colors = np.frombuffer(bytes.fromhex(_CONTROL_POINTS[name]), np.uint8).reshape(-1, 3).astype(np.float64)
    place = unit * (len(colors) - 1)
    return np.stack([np.interp(place, np.arange(len(colors)), channel) for channel in colors.T], axis=-1)
