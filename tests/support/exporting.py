"""Make exports cheaper in a process that does many; `tests/conftest.py` imports this module when one does."""

from __future__ import annotations

import logging
from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry

# torch logs every step of an export. Formatting the records for pytest takes a tenth of an export's time.
logging.getLogger("torch.__trace").disabled = True

# The registry of torch's operators is the same for all exports. Reading it takes a second.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[assignment, method-assign]
