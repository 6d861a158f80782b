"""`residuum serve`: answer over HTTP."""

from __future__ import annotations

import argparse
import os

from residuum.cli.options import add_setting_flags, given

EXAMPLES = """\
  residuum serve   # the embedded model, at http://127.0.0.1:8000
  residuum serve --model resnet50 --model embedded
  residuum serve --host 0.0.0.0 --api-key-file keys --rate-limit 10
  residuum serve --engine openvino --precision int8 --workers 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from service.settings import Settings

    # Which models are served comes first; the settings of the engines are declared before the server's own.
    add_setting_flags(parser, tuple(dict.fromkeys(("model", "artifacts", *Settings.model_fields))))


def run(args: argparse.Namespace) -> int:
    # A server started by another one may inherit this; whether this server has workers depends on --workers.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    from service.process.serve import serve as run_server
    from service.settings import Settings, load_settings

    run_server(load_settings(**given(args, tuple(Settings.model_fields))))
    return 0
