"""The golden check: an engine must give the golden logits, and contributions that make them up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from artifact.manifest import read_manifest
from engines.golden import WrongAnswer, check_golden, golden_batch, golden_row


@pytest.mark.parametrize("output", [None, "logits", "contributions", "constants"])
def test_what_is_off_is_refused(artifact: Path, output: str | None) -> None:
    manifest = read_manifest(artifact)
    graph = manifest.graph("attribute")
    assert graph is not None
    session = ort.InferenceSession(artifact / graph.file, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in graph.outputs]
    arrays = session.run(names, golden_batch(golden_row(artifact, manifest), graph, 2))
    outputs = dict(zip(names, arrays, strict=True))
    if output is None:
        assert check_golden(outputs, graph, 10, 2) < 1e-3
        return
    outputs[output][1, 0] += 2 * graph.golden_tolerance
    with pytest.raises(WrongAnswer, match="logit"):
        check_golden(outputs, graph, 10, 2)
    outputs[output][1, 0] = np.nan
    with pytest.raises(WrongAnswer, match="logit"):
        check_golden(outputs, graph, 10, 2)
