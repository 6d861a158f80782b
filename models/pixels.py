"""Images as a network takes them: uint8 [N, H, W, C] to normalised floats [N, C, H, W].

Training, evaluation, BatchNorm statistics and the gates of an export all convert pixels here. Only the graphs
differ: `export.graph` puts the same normalisation inside the graph, so that a server sends uint8.

Shapes: N batch, H W space, C = 3 channels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifact.manifest import Preprocessing


def to_unit_range(images_NHWC: Tensor | NDArray[np.uint8], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 pixels as floats in [0, 1], [N, C, H, W]; the memory format is channels_last."""
    return torch.as_tensor(images_NHWC).permute(0, 3, 1, 2).to(dtype) / 255


def normalise(x_NCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return (x - mean) / std, channel by channel, for x in [0, 1]."""
    mean, std = (
        x_NCHW.new_tensor(values).reshape(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return (x_NCHW - mean) / std


def normalised(
    images_NHWC: Tensor | NDArray[np.uint8], preprocessing: Preprocessing, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return uint8 pixels as the network takes them; the memory format is channels_last.

    Args:
        images_NHWC: already of the size that the network takes.
        dtype: in which the normalisation is computed.
    """
    return normalise(to_unit_range(images_NHWC, dtype), preprocessing)
