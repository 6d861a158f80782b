"""Every row of the zoo: it counts as published, trains a step, fuses and exports."""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from artifact.manifest import WITHOUT_CONTRIBUTIONS, GraphKind
from export.fuse import fuse_batchnorm
from export.graph import export_graph
from export.verify import check_parity, reference, synthetic_images
from models.count import count
from models.pixels import normalised
from models.resnet import ResNet, build, describe_blocks
from models.zoo import ZOO, Architecture, UnknownArchitecture, architecture
from tests.support.networks import liven, metadata_for

SMALL = {name: 64 if row.stem in ("imagenet", "deep") else 32 for name, row in ZOO.items()}
THOUSAND_LAYERS = [name for name, row in ZOO.items() if sum(row.depths) > 300]


def narrow(name: str, **changes: object) -> dict[str, object]:
    """The row at an eighth of its width or less, and no deeper than a test can take."""
    row = ZOO[name]
    return {
        "width": min(8, row.width),
        "stem_width": row.stem_width and 8,
        "group_width": row.group_width and max(1, row.group_width // 16),
        "max_width": row.max_width and max(8, row.max_width // 16),
        "depths": tuple(min(depth, 40) for depth in row.depths),
        **changes,
    }


@pytest.mark.parametrize("name", ZOO)
def test_counts_are_those_published(name: str) -> None:
    row, cost = ZOO[name], count(ZOO[name])
    for counted, published in ((cost.num_parameters, row.num_parameters), (cost.num_macs, row.num_macs)):
        if published is not None:
            digits = len(str(published).rstrip("0"))
            assert abs(counted - published) <= (0 if digits > 6 else 10 ** (len(str(published)) - digits))


def test_exact_counts() -> None:
    """Of torchvision and pytorchcv."""
    assert count(ZOO["resnet50"]) == (25_557_032, 4_089_184_256)
    assert count(ZOO["resnetv2_1001"]).num_parameters == 10_327_706


@pytest.mark.parametrize("name", ZOO)
def test_a_step_moves_every_parameter(name: str) -> None:
    model = build(name, **narrow(name, num_classes=7, stochastic_depth=0.0)).train()
    x = torch.randn(4, 3, SMALL[name], SMALL[name], generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(x), torch.tensor([1, 4, 0, 6])).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", ZOO)
def test_fused_network_gives_the_same_logits_and_leaves_the_source(name: str) -> None:
    model = liven(build(name, **narrow(name, num_classes=10))).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = normalised(synthetic_images(2, SMALL[name], seed=0), metadata_for(model).preprocessing, torch.float64)
    fused = fuse_batchnorm(model)
    with torch.inference_mode():
        assert torch.allclose(fused(x), model(x), rtol=1e-9, atol=1e-9)
    training_only = (torch.nn.BatchNorm2d, torch.nn.Dropout)
    assert not any(isinstance(module, training_only) for module in fused.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def structure(name: str) -> Architecture:
    """What decides the kinds of nodes in a graph: rows that differ in depth or width only have one."""
    row = ZOO[name]
    return replace(
        row,
        **narrow(name, depths=(2, 1), cardinality=min(row.cardinality, 4)),  # type: ignore[arg-type]
        name="",
        num_classes=10,
        num_parameters=None,
        num_macs=None,
        source="",
        aliases=(),
        input_size=SMALL[name],
    )


STRUCTURES = {structure(name): name for name in reversed(ZOO)}
# Each way through a block once, by the row that has most beside it.
WAYS = {
    (spec.branch, spec.variant, spec.shortcut): spec
    for spec in sorted(STRUCTURES, key=lambda spec: (spec.cardinality, spec.se_reduction or 0))
}
GRAPHS: list[tuple[GraphKind, Architecture]] = [
    *(("classify", spec) for spec in STRUCTURES),
    *(("attribute", spec) for spec in WAYS.values()),
]


@pytest.mark.parametrize(
    ("kind", "spec"), GRAPHS, ids=[f"{kind}-{STRUCTURES[spec]}" for kind, spec in GRAPHS]
)
def test_a_graph_agrees_with_the_source(kind: GraphKind, spec: Architecture, tmp_path: Path) -> None:
    """The gates hold logits, F + s and the sum of contributions against the source in float64.

    introspect is a part of attribute.
    """
    model = liven(ResNet(replace(spec, name=STRUCTURES[spec])).initialise(seed=0))
    preprocessing = metadata_for(model, spec.input_size).preprocessing
    exact = copy.deepcopy(model).double()
    expected = reference(exact, preprocessing, synthetic_images(8, spec.input_size, seed=0))
    assert len(describe_blocks(model, spec.input_size)) == sum(spec.depths)
    proto = export_graph(kind, model, preprocessing, path := tmp_path / "graph.onnx")
    operators = [node.op_type for node in proto.graph.node]
    assert not {"BatchNormalization", "Dropout", "Identity"} & set(operators)
    parity = check_parity(kind, path, exact, preprocessing, expected)
    if kind == "classify":  # the other transposes weights too
        assert operators.count("Transpose") == 1
    else:
        assert parity.sum_parity_max_abs is not None
        assert (parity.completeness_max_abs is None) == (spec.variant in WITHOUT_CONTRIBUTIONS)


def a_step(name: str, *, checkpoint_blocks: bool) -> subprocess.CompletedProcess[str]:
    """Of 8 images, in a process with its share of 8 GiB at 128 images, and 1 GiB for PyTorch itself."""
    script = f"""
import torch
from models.resnet import build
torch.set_num_threads(1)
model = build({name!r}).train()
model.checkpoint_blocks = {checkpoint_blocks}
optimizer = torch.optim.SGD(model.parameters(), 0.01)
labels = torch.arange(8)
torch.nn.functional.cross_entropy(model(torch.randn(8, 3, 32, 32)), labels).backward()
optimizer.step()
assert all(parameter.isfinite().all() for parameter in model.parameters())
"""
    limit = 3 * 2**29
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )


@pytest.mark.parametrize("name", THOUSAND_LAYERS)
def test_a_thousand_layers_train_within_8_gib(name: str) -> None:
    """`docs/performance.md` has what 128 images take."""
    done = a_step(name, checkpoint_blocks=True)
    assert done.returncode == 0, done.stderr


def test_without_recomputation_they_do_not() -> None:
    assert "memory" in a_step("resnetv2_1001", checkpoint_blocks=False).stderr


def test_a_row_is_all_that_a_new_architecture_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(ZOO["resnext50_32x4d"], name="resnext14_16x4d", depths=(1, 1, 1, 1), cardinality=16)
    monkeypatch.setitem(ZOO, row.name, row)
    model = build("ResNeXt-14 16x4d", num_classes=3)
    assert model.spec == replace(row, num_classes=3)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("ResNet-50", "resnet50"),
        ("ResNet-1001 v2", "resnetv2_1001"),
        ("WRN-28-10", "wrn28_10"),
        ("SE-ResNeXt-50_32x4d", "seresnext50_32x4d"),
        ("ResNeXt-29 8x64d", "resnext29_8x64d"),
        ("DenseNet-BC-100-k12", "densenet_bc100_k12"),
    ],
)
def test_names_as_papers_write_them(name: str, row: str) -> None:
    assert architecture(name) == ZOO[row]


def test_no_two_rows_answer_to_one_name() -> None:
    names = [known for row in ZOO.values() for known in (row.name, *row.aliases)]
    assert len({name.lower().replace("-", "").replace("_", "") for name in names}) == len(names)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownArchitecture, match=r"did you mean .*resnet50"):
        architecture("resnet5o")
    with pytest.raises(UnknownArchitecture, match="models --zoo"):
        architecture("inception")
