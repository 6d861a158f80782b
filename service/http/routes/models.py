"""GET /models: what is loaded; POST /models/{name}/load and /unload, with an admin key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from artifact.manifest import Manifest
from engines.registry import engines_for
from service.errors import Forbidden, LoadRefused, NotReady, RateLimited, Unauthorized, UnknownModel
from service.http.policy import ADMIN, follows
from service.http.problems import problem_responses
from service.http.schemas import ModelDetail, ModelList, ModelSummary, RunningGraph
from service.http.waiting import serving_of
from service.runtime.model import LoadedGraph, LoadedModel
from service.runtime.repository import Repository

router = APIRouter(prefix="/models", tags=["models"])

LISTS = problem_responses(Unauthorized, RateLimited, NotReady)
DESCRIBES = problem_responses(Unauthorized, UnknownModel, RateLimited, NotReady)
CHANGES = problem_responses(Unauthorized, Forbidden, UnknownModel, LoadRefused, RateLimited, NotReady)


@router.get("", summary="List the loaded models", responses=LISTS)
async def list_models(request: Request) -> ModelList:
    """Return the loaded models; the first is the default."""
    return _list(serving_of(request).models)


@router.get("/{name}", summary="Describe a model", responses=DESCRIBES)
async def describe_model(request: Request, name: str) -> ModelDetail:
    """Return a loaded model, the duration of its batches on this machine, and its manifest."""
    return _detail(serving_of(request).models, name)


@router.post(
    "/{name}/load", summary="Load a model, or swap it for its artifact's new version", responses=CHANGES
)
@follows(ADMIN)
async def load_model(request: Request, name: str) -> ModelList:
    """Load, warm and check the artifact of that name below --artifacts, then let it replace the loaded model
    of its name. No request fails meanwhile: requests that have the old model finish with it. Return what is
    loaded then."""
    serving = serving_of(request)
    await serving.changes.load_model(name)
    return _list(serving.models)


@router.post("/{name}/unload", summary="Unload a model", responses=CHANGES)
@follows(ADMIN)
async def unload_model(request: Request, name: str) -> ModelList:
    """Let the model take no new requests; requests that have it finish. Return what is loaded then."""
    serving = serving_of(request)
    await serving.changes.unload_model(name)
    return _list(serving.models)


def _list(models: Repository) -> ModelList:
    return ModelList(models=[ModelSummary(**_summary(model, models.default)) for model in models])


def _detail(models: Repository, name: str) -> ModelDetail:
    model = models.get(name)
    return ModelDetail(
        **_summary(model, models.default),
        engine_version=model.engine.version,
        threads=model.engine.threads,
        graphs={kind: _running(graph) for kind, graph in model.graphs.items()},
        batch_ms={kind: _rounded(graph.batcher.batch_ms) for kind, graph in model.graphs.items()},
        manifest=_with_engines(model.manifest),
    )


def _with_engines(manifest: Manifest) -> Manifest:
    """Return the manifest with the engines that can run each graph, which its file does not say."""
    graphs = [graph.model_copy(update={"engines": engines_for(graph.precision)}) for graph in manifest.graphs]
    return manifest.model_copy(update={"graphs": tuple(graphs)})


def _running(graph: LoadedGraph) -> RunningGraph:
    return RunningGraph(
        precision=graph.precision,
        engine=graph.engine.name,
        engine_version=graph.engine.version,
        device=graph.engine.device,
        mode=graph.engine.mode,
        threads=graph.engine.threads,
        instances=graph.instances,
        remembered=graph.remembered,
        trials=graph.trials,
    )


def _summary(model: LoadedModel, default: LoadedModel | None) -> dict[str, Any]:
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
