"""Measure the processor time between an introspect graph and its answer, stage by stage.

    python -m benchmarks.introspection_answer                 # the embedded model; seconds
    python -m benchmarks.introspection_answer --model resnet50 --query 'maps=f32&scale=stage'

Runs the graph once on a made-up photograph, and then only what follows the graph: measuring every quantity,
the document, JSON, and whole answers in every form that draws no picture. All stages are timed in turn, by
the thread's own clock, which other work on the machine disturbs less than the time on the wall; the median
counts. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qsl

from artifact.errors import ResiduumError
from artifact.manifest import Manifest, read_manifest
from artifact.preprocess import Preprocessed, Row
from artifact.store import EMBEDDED, find_artifact
from benchmarks.subjects import FRESH_SEED
from engines.engine import EngineOptions
from engines.registry import BASELINE, open_engine
from export.verify import synthetic_images
from introspection.document import answer, to_json
from introspection.forms import FORMS
from introspection.graph_inputs import graph_kind, image_row
from introspection.measure import measure
from introspection.question import IntrospectQuery, resolve
from introspection.seen import Run, Seen


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        directory = find_artifact(args.model, Path("artifacts"))
        manifest = read_manifest(directory)
        query = IntrospectQuery.model_validate(dict(parse_qsl(args.query)))
        stages = stages_of(directory, manifest, query)
    except (ResiduumError, ValueError) as error:
        print(f"benchmarks.introspection_answer: {error}", file=sys.stderr)
        return 2
    times_ms = medians_ms(stages, args.rounds)
    print(
        f"{manifest.name}, /introspect?{args.query}: processor time after the graph, median of {args.rounds}"
    )
    for title, ms in times_ms.items():
        print(f"{title:<48}{ms:>8.3f} ms")
    print(json.dumps({"model": manifest.name, "query": args.query, "rounds": args.rounds, "ms": times_ms}))
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=EMBEDDED, help="name or path (default: %(default)s)")
    parser.add_argument("--query", default="maps=u8", help="as in the URL (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=300, help="times that each is timed (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return args


def stages_of(directory: Path, manifest: Manifest, query: IntrospectQuery) -> dict[str, Callable[[], object]]:
    """Return what follows the graph for one image: every stage by itself, and the whole by form."""
    question = resolve(query, manifest)
    image, outputs = graph_outputs(directory, manifest, query)
    run = Run("fp32", BASELINE, {"decode": 1.0, "queue": 0.1, "inference": 3.0, "total": 4.1})

    def seen() -> Seen:
        return Seen(manifest, measure(manifest, outputs, target=question.target.index), image, run)

    known = seen()
    document = answer(known, question)
    stages: dict[str, Callable[[], object]] = {
        "the question": lambda: resolve(query, manifest),
        "measuring every quantity": seen,
        "the document": lambda: answer(known, question),
        "its JSON": lambda: to_json(document),
    }
    for form in FORMS.values():
        if not form.with_pictures:
            stages[f"question to {form.name}, all of it"] = lambda form=form: form.written(
                seen(), resolve(query, manifest)
            )
    return stages


def graph_outputs(directory: Path, manifest: Manifest, query: IntrospectQuery) -> tuple[Preprocessed, Row]:
    """Return a made-up image, and its rows of the outputs of the graph that the question needs.

    Raises:
        ValueError: the artifact has no such graph in fp32, or lesions are asked for.
    """
    question = resolve(query, manifest)
    kind = graph_kind(manifest, question)
    if (graph := manifest.graph(kind, "fp32")) is None:
        raise ValueError(f"{manifest.name} has no {kind} graph in fp32")
    if "lesion" in question.groups:
        raise ValueError("lesions take a run a block, and are not measured here")
    crop = manifest.preprocessing.crop
    pixels = synthetic_images(1, crop, FRESH_SEED)[0]
    row = image_row(graph, pixels, question)
    fed = {name: value[None] for name, value in row.items()}
    with closing(open_engine(BASELINE, directory / graph.file, "fp32", EngineOptions("cpu"))) as engine:
        outputs = {name: array[0] for name, array in engine.run(fed).items()}
    return Preprocessed(pixels, "png", crop, crop, (0, 0, crop, crop)), outputs


def medians_ms(stages: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the milliseconds of processor time of each, after one round that does not count."""
    taken: dict[str, list[float]] = {title: [] for title in stages}
    for _ in range(rounds + 1):
        for title, work in stages.items():
            started = time.thread_time()
            work()
            taken[title].append((time.thread_time() - started) * 1000)
    return {title: round(statistics.median(each[1:]), 4) for title, each in taken.items()}


if __name__ == "__main__":
    sys.exit(main())
