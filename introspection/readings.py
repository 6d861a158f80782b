"""What a graph gave for one image, in float64: what the formulas of every quantity read.

Knows the shapes of blocks; nothing of variants, names of quantities, requests and files.

Shapes: B blocks that were removed, L blocks of the network, P positions of all blocks one after another
(the sum of H*W), K classes, S = len(SCALARS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.errors import NotFiniteError
from artifact.manifest import MAPS, SCALARS, Block, MapName, ScalarName, map_slices

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class MeanSquares:
    """<F, F>, <s, s>, <u, u> and <y, y>, by block [L] or by position [P].

    F is the residual branch (times its gate), s the shortcut, u = s + F, y the block's output; <a, b> is the
    mean of a*b over the elements of the block, or over the channels at the position.
    """

    F: FloatArray
    s: FloatArray
    u: FloatArray
    y: FloatArray

    @cached_property
    def product(self) -> FloatArray:
        """<F, s>, from |u|^2 = |s|^2 + 2<F, s> + |F|^2."""
        return (self.u - self.F - self.s) / 2

    @cached_property
    def product_scale(self) -> FloatArray:
        """The scale of `product`'s error: its absolute error is the inputs' relative error times this."""
        return (self.u + self.F + self.s) / 2


@dataclass(frozen=True)
class LesionLogits:
    """Logits of one image without each of some blocks.

    Attributes:
        blocks: [B], indices into the network's blocks.
        logits: [B + 1, K]; the first row is of the network with nothing removed.
    """

    blocks: tuple[int, ...]
    logits: NDArray[np.float32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """[B]: activations stayed finite without the block, and with it."""
        finite = np.asarray(np.isfinite(self.logits).all(1))
        return np.asarray(finite[1:] & finite[0])


_MAPS_OF_MEAN_SQUARES: tuple[MapName, ...] = ("residual", "shortcut", "sum", "output")
_SCALARS_OF_MEAN_SQUARES: tuple[ScalarName, ...] = (
    "residual_mean_square",
    "shortcut_mean_square",
    "sum_mean_square",
    "output_mean_square",
)


@dataclass(frozen=True)
class Readings:
    """The outputs of a graph for one image, and what several formulas derive from them.

    Attributes:
        outputs: of the introspect or the attribute graph, by name.
        target: the class that the graph was asked about.
        lesions: None where they were not asked for.
    """

    blocks: tuple[Block, ...]
    outputs: Mapping[str, FloatArray]
    target: int
    lesions: LesionLogits | None = None

    @cached_property
    def logits(self) -> FloatArray:
        """[K]."""
        return self.outputs["logits"]

    @cached_property
    def contributions(self) -> FloatArray:
        """What every block adds to the target's logit, [L]: the sum over its positions."""
        contributions_P = self.outputs["contributions"]
        return np.array([np.add.reduce(contributions_P[part]) for part in self.slices])

    @cached_property
    def top1(self) -> int:
        """The most probable class."""
        return int(self.logits.argmax())

    @cached_property
    def slices(self) -> list[slice]:
        """The slice of P that holds the positions of each block."""
        return map_slices(self.blocks)

    @cached_property
    def channels(self) -> FloatArray:
        """The number of channels of every block, [L]."""
        return np.array([block.shape[0] for block in self.blocks], np.float64)

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """The number of positions of every block, [L]."""
        return np.array([block.shape[1] * block.shape[2] for block in self.blocks], np.int64)

    @cached_property
    def positions(self) -> MeanSquares:
        """Means over the channels at every position, [P], from the graph's maps."""
        return MeanSquares(*(self._squares[MAPS.index(name)] for name in _MAPS_OF_MEAN_SQUARES))

    @cached_property
    def _squares(self) -> FloatArray:
        """The graph's maps, squared, [4, P]."""
        return self.outputs["maps"] ** 2

    @cached_property
    def squares(self) -> MeanSquares:
        """Means over every block, [L], averaged here from `positions`.

        The graph's own means only check these (`reduced`): summing 800,000 squares one by one in float32, as
        ONNX Runtime's ReduceSumSquare does on a CPU, was measured 7e-4 off, an average of the maps 1e-8 to
        4e-7.
        """
        starts = [part.start for part in self.slices]
        means = np.add.reduceat(self._squares, starts, axis=1) / self.areas
        return MeanSquares(*(means[MAPS.index(name)] for name in _MAPS_OF_MEAN_SQUARES))

    @cached_property
    def reduced(self) -> MeanSquares:
        """Means over every block, [L], as the graph reduced them."""
        return MeanSquares(*map(self.column, _SCALARS_OF_MEAN_SQUARES))

    def map(self, name: MapName) -> FloatArray:
        """Return one of the graph's maps, [P]: a root mean square over channels."""
        values: FloatArray = self.outputs["maps"][MAPS.index(name)]
        return values

    def column(self, name: ScalarName) -> FloatArray:
        """Return one of the graph's scalars, [L]."""
        return self.outputs["scalars"][:, SCALARS.index(name)]

    def by_position(self, values_L: FloatArray) -> FloatArray:
        """Return each block's value at all of its positions, [P]."""
        return np.repeat(values_L, self.areas)


def read(
    blocks: tuple[Block, ...],
    outputs: Mapping[str, NDArray[Any]],
    target: int | None = None,
    lesions: LesionLogits | None = None,
) -> Readings:
    """Return the graph's outputs as float64.

    Args:
        target: None: the most probable class.

    Raises:
        NotFiniteError: an output holds NaN or infinity.
    """
    exact = {name: np.asarray(array, np.float64) for name, array in outputs.items()}
    if not all(np.isfinite(array).all() for array in exact.values()):
        raise NotFiniteError("the graph returned values that are not finite")
    return Readings(blocks, exact, int(exact["logits"].argmax()) if target is None else target, lesions)
