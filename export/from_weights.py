"""Read a file of weights of another project as a network of ours, with labels and preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artifact.manifest import Preprocessing
from export.network import Network, Origin
from export.options import (
    changed_preprocessing,
    flags_of,
    numbers,
    read_labels,
    usual_labels,
    usual_preprocessing,
    with_changes,
)
from export.source import Request, SourceError
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.identify import untold
from models.imagenet import imagenet_labels
from models.pretrained import IMAGENET, Pretrained, PretrainedError
from models.resnet import ResNet
from models.weights import WeightsError, load_foreign, read_state
from models.zoo import architecture

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A file of weights; if they are published, also their row and preprocessing.

    `discard` removes the file from our cache; None: the file is the user's, or its published SHA-256 was
    right.
    """

    path: Path
    source: str
    sha256: str
    preprocessing: Preprocessing | None = None
    row: Pretrained | None = None
    discard: Callable[[], None] | None = None


def from_weights(found: Found, request: Request, say: Say) -> Network:
    """Return the network in a file of weights; `say` receives each decision in words.

    Raises:
        SourceError, OptionError, UnknownArchitecture: an option does not fit.
        WeightsError: the file cannot be read, or is not that network.
    """
    model = _map(found, request)
    row = found.row
    origin = Origin(
        found.source,
        found.sha256,
        weights=row.key if row else None,
        licence=row.licence if row else None,
        published_accuracy=row.published if row else None,
    )
    return Network(model, _describe(model, found, request, say), origin)


@contextmanager
def discarded_if_bad(discard: Callable[[], None] | None) -> Iterator[None]:
    """Remove an unreadable file without a published SHA-256 from the cache: it may be an error page."""
    try:
        yield
    except (WeightsError, PretrainedError) as error:
        if discard is None:
            raise
        discard()
        raise SourceError(
            f"{error}; it was removed from the cache, and the next run fetches it again"
        ) from error


def _map(found: Found, request: Request) -> ResNet:
    """Return a network of ours with these weights, and check the published number of parameters."""
    with discarded_if_bad(found.discard):
        state = read_state(found.path)
    name = found.row.architecture if found.row else request.architecture
    spec = architecture(name) if name else None
    if request.changes:
        spec = with_changes(spec or load_foreign(state).spec, request.changes)
    try:
        model = load_foreign(state, spec)
    except ValueError as error:  # each field is valid, but no network has all of them
        if not request.changes:
            raise
        raise SourceError(f"{flags_of(request.changes)}: {error}") from error
    num_parameters = sum(p.numel() for p in model.parameters())
    if found.row and found.row.num_parameters != num_parameters:
        raise SourceError(
            f"{found.source} makes a network of {num_parameters:,} parameters; "
            f"{found.row.num_parameters:,} were published"
        )
    return model


def _describe(model: ResNet, found: Found, request: Request, say: Say) -> CheckpointMetadata:
    """Return the metadata: labels and preprocessing as published or requested; `say` tells of defaults."""
    spec = model.spec
    if request.labels:
        labels = read_labels(request.labels)
    elif found.row:
        labels = imagenet_labels()
    else:
        labels, about = usual_labels(spec)
        say(f"{spec.name}, {spec.num_classes} classes: {about}; --labels gives others")
    if len(labels) != spec.num_classes:
        raise SourceError(f"{len(labels)} labels for {spec.num_classes} classes")
    preprocessing = found.preprocessing or usual_preprocessing(spec)
    preprocessing = changed_preprocessing(preprocessing, request.preprocessing)
    if found.preprocessing is None:
        say(
            f"resize {preprocessing.resize}, crop {preprocessing.crop}, {preprocessing.interpolation}, "
            f"mean {numbers(preprocessing.mean)}, std {numbers(preprocessing.std)}; "
            "--resize --crop --interpolation --mean --std change it"
        )
    if not (found.row or request.architecture):
        for sentence in untold(spec):
            say(sentence)
    if found.row and (published := found.row.published) and published.pixels != preprocessing.crop:
        say(f"published top-1 is of images of {published.pixels} pixels; {preprocessing.crop} are served")
    return CheckpointMetadata(
        architecture=describe_architecture(model),
        labels=labels,
        preprocessing=preprocessing,
        dataset=IMAGENET if found.row else None,
    )
