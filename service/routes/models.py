"""GET /models: what is loaded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service.errors import NotReady, UnknownModel, problem_responses
from service.repository import LoadedGraph, LoadedModel
from service.schemas import ModelDetail, ModelList, ModelSummary, RunningGraph
from service.serving import serving_of

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="List the loaded models", responses=problem_responses(NotReady))
async def list_models(request: Request) -> ModelList:
    """The loaded models; the first one is the default."""
    models = serving_of(request).models
    return ModelList(models=[ModelSummary(**_summary(model, models.get(None))) for model in models])


@router.get("/{name}", summary="Describe a model", responses=problem_responses(UnknownModel, NotReady))
async def describe_model(request: Request, name: str) -> ModelDetail:
    """A loaded model, the milliseconds a batch takes here, and its manifest."""
    models = serving_of(request).models
    model = models.get(name)
    batchers = {"classify": model.classify, "introspect": model.introspect}
    return ModelDetail(
        **_summary(model, models.get(None)),
        engine_version=model.engine.version,
        threads=model.engine.threads,
        graphs={kind: _running(graph) for kind, graph in model.graphs.items()},
        batch_ms={graph: _rounded(batcher.batch_ms) for graph, batcher in batchers.items() if batcher},
        manifest=model.manifest,
    )


def _running(graph: LoadedGraph) -> RunningGraph:
    return RunningGraph(
        precision=graph.precision,
        engine=graph.engine.name,
        engine_version=graph.engine.version,
        device=graph.engine.device,
        mode=graph.engine.mode,
        threads=graph.engine.threads,
        remembered=graph.remembered,
        trials=graph.trials,
    )


def _summary(model: LoadedModel, default: LoadedModel) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "default": model is default,
        "architecture": manifest.architecture,
        "variant": manifest.variant,
        "num_classes": manifest.num_classes,
        "num_parameters": manifest.provenance.num_parameters,
        "num_blocks": len(manifest.blocks),
        "input_size": manifest.preprocessing.crop,
        "precision": model.precision,
        "engine": model.engine.name,
        "device": model.engine.device,
    }


def _rounded(batch_ms: dict[int, float]) -> dict[int, float]:
    return {size: round(ms, 3) for size, ms in batch_ms.items()}
