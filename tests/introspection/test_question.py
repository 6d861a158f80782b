"""What the parameters of /introspect mean for a manifest, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from artifact.errors import ParameterError
from artifact.manifest import Label
from introspection.quantities import GROUPS, MAPS
from introspection.question import IntrospectQuery, Question, Target, parse_target, resolve
from tests.support.measured import made_manifest, made_reference

SHAPES = [(8, 8, 8), (8, 8, 8), (16, 4, 4), (16, 4, 4), (32, 2, 2)]
MANIFEST = made_manifest(SHAPES)  # stage1.0, 1.1, stage2.0, 2.1, stage3.0; 12 classes

LABELS = (
    Label(label="golden retriever", wnid="n02099601"),
    Label(label="crane", wnid="n02012849"),
    Label(label="crane", wnid="n03126707"),
    Label(label="tench, Tinca tinca", wnid="n01440764"),
    Label(label="tench"),
)


def options(**given: Any) -> Question:
    return resolve(IntrospectQuery(**given), MANIFEST)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"blocks": "stage1.1, stage1.0,stage1.0"}, {"blocks": "stage1"}),
        ({"quantities": "rms,share"}, {"quantities": "share, rms,"}),
        ({"gates": "stage2:0.50,stage1.0:1"}, {"gates": "1,1,.5,.5,1"}),
        ({"target": "N00000004 "}, {"target": "class 4"}),
        ({"quantities": "lesion"}, {"quantities": "lesion", "lesion": True}),
        ({"top_k": 5}, {}),
    ],
)
def test_the_same_question_has_one_digest_however_it_is_written(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert options(**one).digest() == options(**other).digest()
    assert len(options(**one).digest()) == 32


def test_other_questions_have_other_digests() -> None:
    given: list[dict[str, Any]] = [
        *({}, {"target": "3"}, {"target": "4"}, {"target": "class 4"}, {"target": "0"}),
        *({"blocks": "stage1"}, {"blocks": "stage2"}, {"quantities": "rms"}, {"quantities": "share"}),
        *({"maps": "u8"}, {"maps": "f32"}, {"scale": "stage"}, {"gates": "1,0,1,1,1"}, {"lesion": True}),
        *({"gates": "1,1,0,1,1"}, {"top_k": 3}, {"render": "raw"}, {"colormap": "jet"}, {"alpha": 0.25}),
    ]
    assert len({options(**each).digest() for each in given}) == len(given)


def test_everything_has_a_default() -> None:
    default = options()
    assert default.target == Target("top1", None)
    assert default.blocks == (0, 1, 2, 3, 4)
    assert default.maps == tuple(MAPS)
    assert default.groups == tuple(name for name, group in GROUPS.items() if not group.on_request)
    assert default.complete
    assert default.encoding is None
    assert default.gates_L.tolist() == [1, 1, 1, 1, 1]
    assert default.gates_L.dtype == "float32"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage2.1", (3,)),
        ("stage2", (2, 3)),
        ("stage3,stage1.0", (0, 4)),
        (" stage1 , stage1.0, ", (0, 1)),
    ],
)
def test_blocks(text: str, expected: tuple[int, ...]) -> None:
    assert options(blocks=text).blocks == expected


def test_a_quantity_may_be_a_map_and_a_scalar() -> None:
    both = options(quantities="share, rms,residual")
    assert both.maps == ("residual", "share")
    assert both.groups == ("rms", "share")
    assert not both.complete


def test_what_is_suggested_exists() -> None:
    plain = made_manifest(SHAPES, variant="plain")
    with pytest.raises(ParameterError) as caught:
        resolve(IntrospectQuery(quantities="shine"), plain)
    assert caught.value.hint == "Maps: residual, output. Scalars: rms, std_residual, relu, lens, lesion."


def test_lesions_are_asked_for_either_way() -> None:
    named = options(quantities="lesion,contribution")
    assert named.groups == ("contribution", "lesion")
    assert named.maps == ("contribution",)
    assert options(quantities="contribution", lesion=True).groups == named.groups
    assert options(quantities="lesion", lesion=True).groups == ("lesion",)
    everything = options(lesion=True)
    assert everything.groups == (*options().groups, "lesion")
    assert everything.complete


def test_a_reference_can_be_scaled_by_where_there_is_one() -> None:
    known = MANIFEST.model_copy(update={"reference": made_reference(MANIFEST)})
    assert resolve(IntrospectQuery(scale="reference"), known).scale == "reference"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,1,0.5,-1,4", [0, 1, 0.5, -1, 4]),
        ("stage2.0:0", [1, 1, 0, 1, 1]),
        ("stage2:0, stage2.1:0.5", [1, 1, 0, 0.5, 1]),
        ("stage1.1:-2.5,stage3:1e-1", [1, -2.5, 1, 1, pytest.approx(0.1)]),
    ],
)
def test_gates(text: str, expected: list[float]) -> None:
    assert options(gates=text).gates_L.tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1", Target("top1", None)),
        ("TOP1", Target("top1", None)),
        ("3", Target("index", 3)),
        ("003", Target("index", 3)),
        ("0000000000003", Target("index", 3)),  # every digit counts, however many zeros come before
        ("0" * 5000, Target("index", 0)),
        ("Golden Retriever", Target("label", 0)),
        ("n02099601", Target("label", 0)),
        ("n03126707", Target("label", 2)),
        ("tench, tinca tinca", Target("label", 3)),
        ("tench", Target("label", 4)),  # a whole label is more than a first word
    ],
)
def test_targets(text: str, expected: Target) -> None:
    assert parse_target(text, LABELS) == expected


def test_a_first_word_is_enough() -> None:
    assert parse_target("Tench", LABELS[:4]) == Target("label", 3)


def test_a_label_of_two_classes_is_refused_with_their_indices() -> None:
    with pytest.raises(ParameterError, match=r"index: 1, 2\."):
        parse_target("crane", LABELS)


def test_top_k_is_cut_unless_it_was_asked_for() -> None:
    few = made_manifest(SHAPES, labels=LABELS[:3])
    assert resolve(IntrospectQuery(), few).top_k == 3
    with pytest.raises(ParameterError, match="3 classes"):
        resolve(IntrospectQuery(top_k=5), few)


@pytest.mark.parametrize(
    ("parameter", "value", "says"),
    [
        ("blocks", "stage9", "stage9"),
        ("blocks", "stage1.0,stage", "stage1.0, stage1.1"),
        ("quantities", "share,shine", "residual, shortcut"),
        ("quantities", "share,shine", "contribution, lens, lesion"),
        ("quantities", "rms.residual", "Ask for rms."),
        ("quantities", "lens.label", "Ask for lens."),
        ("gates", "1,0", "2 values for 5 blocks"),
        ("gates", "stage2.0:nan", "-4 to 4"),
        ("gates", "stage2.0:inf", "-4 to 4"),
        ("gates", "stage2.0:4.1", "-4 to 4"),
        ("gates", "stage2.0:", "-4 to 4"),
        ("gates", "stage2.0", "1 values for 5 blocks"),
        ("gates", "1,1,x,1,1", "not usable"),
        ("gates", "stage7:0", "stage7"),
        ("gates", "stage2.0:0,1", "stage1.0"),
        ("target", "12", "0 to 11"),
        ("target", "-1", "no such class"),
        ("target", "9" * 5000, "0 to 11"),
        ("target", "0" * 5000 + "12", "0 to 11"),
        ("target", "0000000000193", "0 to 11"),
        ("target", "1000000000000", "0 to 11"),
        ("target", "unicorn", "no such class"),
        ("target", "", "no such class"),
        ("top_k", "13", "12 classes"),
        ("scale", "reference", "without validation images"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parameter: str, value: str, says: str) -> None:
    with pytest.raises(ParameterError) as caught:
        options(**{parameter: value})
    assert caught.value.parameter == parameter
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("maps", "u16"),
        ("scale", "block"),
        ("render", "3d"),
        ("colormap", "rainbow"),
        ("alpha", "1.1"),
        ("alpha", "nan"),
        ("top_k", "0"),
        ("lesion", "perhaps"),
        ("timeout_ms", "0"),
        ("shape", "round"),
    ],
)
def test_values_that_no_manifest_allows(parameter: str, value: str) -> None:
    with pytest.raises(ValidationError):
        IntrospectQuery.model_validate({parameter: value})
