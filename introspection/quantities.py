"""Every quantity is one row: its name, formula, unit, range, words for people, and which variants lack it.

Two tables: `GROUPS` of numbers, one value for each block, and `MAPS`, one value for each position. Documents,
NPZ, pictures, the terminal, OpenAPI, docs/introspection.md and the page read the rows; none has a list of its
own. To add a quantity, add its formula (mean_squares.py or attribution.py) and a row here; quantity.py says
what a row holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from artifact.manifest import Manifest, Variant
from introspection import attribution, mean_squares
from introspection.digits import LOGIT_DIGITS
from introspection.mean_squares import RATIO_LIMIT
from introspection.quantity import Drawn, Group, Look, Map, Member, Reasons

NO_SHORTCUT = "a plain network has no shortcut"
NO_RELU = "no ReLU follows the addition"
NOT_DIRECT = "without shortcuts nothing but the last block reaches the head directly"
NOT_LINEAR = "the shortcuts are gated: the logit is not linear in the branches"
NOT_EXPORTED = "this artifact was exported without it: export it again"

IN_PLAIN: Reasons = {"plain": NO_SHORTCUT}

ACTIVATION = "RMS, in activation units"
OUTPUTS: dict[Variant, str] = {
    "v1": "ReLU(shortcut s + residual branch F)",
    "v2": "shortcut s + residual branch F",
    "highway": "gated shortcut s + gated branch F",
    "plain": "ReLU(branch F), without a shortcut",
}


def _percent(name: str, title: str, sentence: str, **more: Any) -> Member:
    return Member(name, title, sentence, unit="%", digits=1, percent=True, **more)


SIZES, AGAINST, PARTS = "Root mean square", "F beside s", "Parts of u = s + F"
RELU, TOWARDS, WITHOUT = "What the ReLU does", "For: {}", "Without this block"
BIASED = "A shortcut from a ReLU is never negative, which biases it."

_GROUPS = (
    Group(
        "rms",
        "Sizes",
        mean_squares.rms,
        (
            Member(
                "residual",
                "Size of the branch F",
                "Root mean square of what the branch adds.",
                unit="RMS",
                optional=False,
                drawn=Drawn(SIZES, 0, "branch F"),
            ),
            Member(
                "shortcut",
                "Size of the shortcut s",
                "Root mean square of what it carries.",
                unit="RMS",
                lacking=IN_PLAIN,
                drawn=Drawn(SIZES, 1, "shortcut s"),
            ),
            Member(
                "output",
                "Size of the output",
                "Root mean square of what the block hands on.",
                unit="RMS",
                optional=False,
                drawn=Drawn(SIZES, 2, "output"),
            ),
        ),
        written="root mean square of F, s, y",
        meaning="how large",
    ),
    Group(
        "std_residual",
        "Sizes",
        mean_squares.std_residual,
        (
            Member(
                "",
                "Layer response",
                "Standard deviation of F, as He et al. 2016 plot it.",
                unit="std",
                drawn=Drawn(SIZES, 3, "std of F"),
            ),
        ),
        written="√(E[F²] − E[F]²)",
        meaning="the layer response of He et al. 2016, figure 7",
    ),
    Group(
        "ratio",
        "Branch against shortcut",
        mean_squares.ratio,
        (
            Member(
                "",
                "Ratio |F| / |s|",
                "How much the block changes what it was given: the branch’s norm over the shortcut’s.",
                "A block that changes much need not matter much.",
                drawn=Drawn(AGAINST, 0, "|F| / |s|"),
                look=Look("|F|/|s|", ".2f", None, minor=True),
            ),
        ),
        written="‖F‖ / ‖s‖",
        meaning="how much the block changes what it was given (Jastrzębski et al. 2018)",
        lacking=IN_PLAIN,
    ),
    Group(
        "cosine",
        "Branch against shortcut",
        mean_squares.cosine,
        (
            Member(
                "",
                "Cosine of F and s",
                "Does the branch agree with the shortcut (+), turn from it (0) or undo it (−)?",
                BIASED,
                signed=True,
                drawn=Drawn(AGAINST, 1, "cosine", "+.3f"),
                look=Look("cosine", "+.2f", 1, signed=True, minor=True),
            ),
        ),
        written="⟨F, s⟩ / ‖F‖‖s‖",
        meaning="whether the branch strengthens the shortcut (1), is orthogonal to it (0) or opposes it "
        "(−1). A v1 identity shortcut is never negative, which biases `cosine`",
        lacking=IN_PLAIN,
    ),
    Group(
        "cosine_centered",
        "Branch against shortcut",
        mean_squares.cosine_centered,
        (
            Member(
                "",
                "Cosine, centred",
                "The cosine after each channel’s mean over places is taken off F and s.",
                "It compares patterns over places, not levels.",
                signed=True,
                drawn=Drawn(AGAINST, 2, "centred", "+.3f"),
                look=Look("centred", "+.2f", 1, signed=True, minor=True),
            ),
        ),
        written="the cosine after subtracting each channel's mean over positions from F and s",
        meaning="the same for patterns over positions, without the bias of levels",
        lacking=IN_PLAIN,
    ),
    Group(
        "energy",
        "Energy",
        mean_squares.energy,
        (
            _percent(
                "residual",
                "Energy of the branch",
                "‖F‖² over ‖u‖²; passes 100 % when F and s cancel.",
                drawn=Drawn(PARTS, 1, "energy of F"),
            ),
            _percent(
                "shortcut",
                "Energy of the shortcut",
                "‖s‖² over ‖u‖².",
                drawn=Drawn(PARTS, 2, "energy of s"),
            ),
            _percent(
                "cross",
                "Energy in common",
                "2⟨F, s⟩ over ‖u‖²: what agreement adds, or cancelling takes; the three energies sum to "
                "100 %.",
                signed=True,
                drawn=Drawn(PARTS, 3, "cross term", "+.3f"),
            ),
        ),
        written="‖F‖², ‖s‖², 2⟨F, s⟩, each over ‖u‖²",
        meaning="sum to 1; the first can pass 1 when F and s cancel",
        lacking=IN_PLAIN,
    ),
    Group(
        "share",
        "Branch against shortcut",
        mean_squares.share,
        (
            _percent(
                "residual",
                "Share of the branch",
                "The branch’s part of what left the addition, ⟨F, u⟩ / ⟨u, u⟩; negative where the branch "
                "works against the sum.",
                caution="It is not importance: later blocks may ignore what was written.",
                drawn=Drawn(PARTS, 0, "share of F"),
                look=Look("share", ".2f", 1),
            ),
            _percent(
                "shortcut",
                "Share of the shortcut",
                "What the branch’s share leaves: both sum to 100 %.",
            ),
        ),
        written="⟨F, u⟩ and ⟨s, u⟩ over ‖u‖²",
        meaning='sum to 1: the safe "fraction of the output"; negative where the branch works against the '
        "sum",
        lacking=IN_PLAIN,
    ),
    Group(
        "relu",
        "ReLU",
        mean_squares.relu,
        (
            _percent(
                "clip_fraction",
                "Set to 0 by the ReLU",
                "How many values of the sum the ReLU sets to 0.",
                optional=False,
                drawn=Drawn(RELU, 0, "set to 0"),
                look=Look("clipped", ".2f", 1),
            ),
            _percent(
                "clip_energy",
                "Energy lost in the ReLU",
                "The same by energy.",
                drawn=Drawn(RELU, 1, "of energy"),
            ),
            _percent(
                "erased",
                "Switched off",
                "Values that the shortcut had and the branch took below 0.",
                lacking=IN_PLAIN,
                drawn=Drawn(RELU, 2, "erased"),
            ),
            _percent(
                "written",
                "Switched on",
                "Values that the shortcut had not and the branch brought above 0.",
                lacking=IN_PLAIN,
                drawn=Drawn(RELU, 3, "written"),
            ),
        ),
        written="mean[u ≤ 0]; ‖min(u, 0)‖² / ‖u‖²; mean[s > 0 and u ≤ 0]; mean[s ≤ 0 and u > 0]",
        meaning="how much of the sum the ReLU sets to 0, by count and by energy; the fraction of units that "
        "the branch switched off, and on",
        lacking={"v2": NO_RELU, "highway": NO_RELU},
    ),
    Group(
        "contribution",
        "Towards the answer",
        attribution.contribution,
        (
            Member(
                "",
                "Contribution",
                "What the branch adds directly to the chosen class’s logit.",
                "What later blocks make of the branch is not in it.",
                unit="logits",
                signed=True,
                of_target=True,
                drawn=Drawn(TOWARDS, 0, "adds, logits", "+.2f"),
                look=Look("contribution", "+.2f", None, signed=True, short="contrib"),
            ),
        ),
        written="see [contributions](#contributions)",
        meaning="what the branch adds directly to the target's logit",
        source="attribute",
        output="contributions",
        digits=LOGIT_DIGITS,
        lacking={"highway": NOT_LINEAR, "plain": NOT_DIRECT},
    ),
    Group(
        "lens",
        "Towards the answer",
        attribution.lens,
        (
            Member("index", "", "The most probable class at the block.", kind=int, optional=False),
            Member(
                "label",
                "",
                "Its label.",
                kind=str,
                optional=False,
                drawn=Drawn(TOWARDS, 3, "lens class", ""),
            ),
            _percent(
                "probability",
                "Lens: most probable class",
                "The top probability, had the network stopped here.",
                optional=False,
            ),
            _percent(
                "target_probability",
                "Lens: chosen class",
                "The chosen class’s probability, had the network stopped here.",
                optional=False,
                of_target=True,
                drawn=Drawn(TOWARDS, 2, "lens, prob."),
                look=Look("lens", ".2f", 1),
            ),
            Member(
                "target_logit",
                "Lens: chosen class’s logit",
                "The chosen class’s logit, had the network stopped here.",
                unit="logits",
                signed=True,
                optional=False,
                of_target=True,
                drawn=Drawn(TOWARDS, 1, "lens, logit", ".2f"),
            ),
        ),
        written="see [lens](#lens)",
        meaning="the answer if the network ended after this block",
        source="attribute",
        output="lens",
        digits=LOGIT_DIGITS,
        line=lambda lens: f"{100 * lens['probability']:3.0f} % {lens['label']}",
        heading="lens",
        note="lens: the answer, had the network stopped after the block",
    ),
    Group(
        "lesion",
        "Without the block",
        attribution.lesion,
        (
            Member(
                "delta_logit",
                "Without it: top logit",
                "How the original top class’s logit changes when the block is removed; negative: the block "
                "supported it.",
                unit="logits",
                signed=True,
                optional=False,
                drawn=Drawn(WITHOUT, 0, "logit", "+.2f"),
                look=Look("without it", "+.2f", None, signed=True, short="without"),
            ),
            _percent(
                "delta_probability",
                "Without it: top probability",
                "The same of its probability.",
                signed=True,
                optional=False,
                drawn=Drawn(WITHOUT, 1, "probability", "+.3f"),
            ),
            Member(
                "kl",
                "Without it: KL",
                "How far the whole answer moves: KL(p ‖ p without the block).",
                unit="nats",
                digits=4,
                optional=False,
                drawn=Drawn(WITHOUT, 2, "KL, nats"),
                look=Look("KL", ".2f", None),
            ),
            Member(
                "flipped",
                "",
                "Another class is the most probable one without the block.",
                kind=bool,
                optional=False,
            ),
            Member("index", "", "The most probable class without the block.", kind=int, optional=False),
            Member(
                "label",
                "",
                "Its label.",
                kind=str,
                optional=False,
                drawn=Drawn(WITHOUT, 3, "top class", ""),
            ),
            Member(
                "target_delta_logit",
                "Without it: chosen logit",
                "How the chosen class’s logit changes when the block is removed.",
                unit="logits",
                signed=True,
                optional=False,
                of_target=True,
                look=Look("without it", "+.2f", None, signed=True, short="without"),
            ),
            _percent(
                "target_delta_probability",
                "Without it: chosen probability",
                "The same of its probability.",
                signed=True,
                optional=False,
                of_target=True,
            ),
        ),
        written="see [lesions](#lesions)",
        meaning="how the answer changes without the block's branch",
        source="lesions",
        on_request=True,
        reminder="ask for it with lesion=true",
        line=lambda lesion: lesion["label"] if lesion["flipped"] else "",
        heading="flips to",
        note="without it: how the top class's logit changes when the block's branch is removed",
    ),
    Group(
        "top_channels",
        "Towards the answer",
        attribution.top_channels,
        (
            Member("channel", "", "The channel of the branch, from 0.", kind=int, optional=False),
            Member(
                "sum",
                "Contribution of the channel",
                "What the channel adds directly to the target's logit.",
                unit="logits",
                signed=True,
                optional=False,
                of_target=True,
                drawn=Drawn("Channels, for: {}", 0, "no. {}", "+.3f"),
            ),
        ),
        written="the largest Σ_p gradient × F over the positions of a channel",
        meaning="the five channels that add most to the target's logit, best first; all channels of a block "
        "sum to its `contribution`",
        source="attribute",
        output="channels",
        digits=LOGIT_DIGITS,
        lacking={"highway": NOT_LINEAR, "plain": NOT_DIRECT},
        on_request=True,
        ranked=True,
        line=lambda best: ", ".join(f"{row['channel']}: {row['sum']:+.2f}" for row in best[:3]),
        heading="top channels",
        note="top channels: the channels that add most to the logit, and how much each adds",
    ),
)

_MAPS = (
    Map(
        "residual",
        mean_squares.residual_map,
        number="rms.residual",
        word="rms",
        short="F",
        title="Residual branch",
        unit=ACTIVATION,
        brief="F: what the block computes",
        legend="Size of what the residual branch F gives at each place: root mean square over its channels.",
        sentence="How large what the residual branch F adds is at each place: root mean square over "
        "channels.",
        caution="Size says nothing of direction: a large addition may cancel what the shortcut carries.",
        written="M_F = √(Σ_c F_c² / C)",
        bounds="0 to the declared `vmax`",
        ends=("nothing", "most"),
        of_variant={
            "plain": (
                "How large what the block computes is at each place: root mean square over channels.",
                "Bright places are active, not necessarily relevant for the label.",
            )
        },
    ),
    Map(
        "shortcut",
        mean_squares.shortcut_map,
        number="rms.shortcut",
        word="rms",
        short="s",
        title="Shortcut",
        unit=ACTIVATION,
        brief="s: what is carried past the branch",
        legend="Size of what the shortcut s carries past the branch: root mean square over its channels.",
        sentence="How large what the shortcut s carries past the branch is: root mean square over channels.",
        caution="It holds everything that earlier blocks wrote, not the photograph itself.",
        written="M_s = √(Σ_c s_c² / C)",
        bounds="0 to the declared `vmax`",
        ends=("nothing", "most"),
    ),
    Map(
        "output",
        mean_squares.output_map,
        number="rms.output",
        word="rms",
        short="y",
        title="Output",
        unit=ACTIVATION,
        brief="what the block hands on",
        legend="Size of what the block hands on: root mean square over its channels.",
        sentence="How large what the block hands on is: root mean square over channels.",
        caution="Bright places are active, not necessarily relevant for the label.",
        written="M_y = √(Σ_c y_c² / C)",
        bounds="0 to the declared `vmax`",
        ends=("nothing", "most"),
    ),
    Map(
        "share",
        mean_squares.share_map,
        number="share.residual",
        word="share",
        short="branch",
        title="Share",
        unit="share of energy",
        brief="0 = shortcut only, 1 = branch only",
        legend="Share of the block's output energy written by the residual branch, F^2 / (F^2 + s^2): "
        "0 = shortcut only, 1 = branch only. The number is the whole block's <F, u> / <u, u>; u = s + F.",
        sentence="Branch against shortcut at each place, by energy: F² / (F² + s²). The number below is the "
        "whole block’s part of the sum, which also counts direction (it can be negative or above 100 %).",
        caution="A large share is not importance: later blocks may ignore what was written.",
        written="M_F² / (M_F² + M_s²), 0.5 where both are 0",
        bounds="0 to 1",
        ends=("shortcut only", "branch only"),
        range=(0.0, 1.0),
        digits=0,
        percent=True,
    ),
    Map(
        "ratio",
        mean_squares.ratio_map,
        number="ratio",
        word="|F| / |s|",
        short="|F| / |s|",
        title="Ratio",
        unit="log2 of |F| / |s|",
        brief="0 = equal, 1 = F is twice s, -1 = half",
        legend="How much larger the residual branch is than the shortcut, in powers of two: 0 = equal, "
        "1 = twice, -1 = half; cut off at 4 either way.",
        sentence="How many times larger the branch is than the shortcut, in powers of two: 0 is equal, "
        "+1 twice. The number below is the whole block’s, and plain: 1 is equal, 2 twice.",
        caution="It compares sizes only, and is cut off at sixteenfold.",
        written="log2((M_F + ε) / (M_s + ε)), ε = 1e-6 RMS(u)",
        bounds="−4 to 4, clipped",
        ends=("shortcut larger", "branch larger"),
        range=(-RATIO_LIMIT, RATIO_LIMIT),
        diverging=True,
    ),
    Map(
        "cosine",
        mean_squares.cosine_map,
        number="cosine",
        word="cosine",
        short="cosine",
        title="Cosine",
        unit="cosine of F and s",
        brief="1 = F strengthens s, -1 = takes it away",
        legend="Whether the residual branch goes the shortcut's way: 1 = it strengthens what is there, "
        "0 = it adds something else, -1 = it takes away. Hatched: one of the two is too small to tell.",
        sentence="Whether the branch goes the shortcut’s way: +1 strengthens what is there, 0 adds something "
        "else, −1 takes it away.",
        caution="A shortcut that comes from a ReLU is never negative, which biases it. Hatched: too small to "
        "tell.",
        written="⟨F, s⟩ / (M_F M_s C) at the position",
        bounds="−1 to 1; null where F or s is too small for a reliable value",
        ends=("takes away", "strengthens"),
        range=(-1.0, 1.0),
        diverging=True,
        nullable=True,
    ),
    Map(
        "contribution",
        attribution.contribution_map,
        number="contribution",
        word="sum",
        short="adds",
        title="Contribution",
        title_for="Contribution to: {}",
        unit="logits, each cell",
        brief="above 0 = for the class, below = against",
        legend="What each place of the block adds to the class's logit directly, past all later branches: "
        "above 0 for the class, below 0 against it. The number is the sum of the cells.",
        sentence="What the branch adds directly to the logit of the chosen class, place by place; a block’s "
        "places sum to its contribution.",
        caution="Only the direct path: what later blocks make of it is not counted. The lesions count that.",
        written="Σ_c gradient × F at the position, in logits: the cells sum to the scalar",
        bounds="−`vmax` to `vmax`, so that in `u8` 0 is exactly code 127 of 254 levels",
        ends=("against the class", "for the class"),
        diverging=True,
        digits=5,
    ),
)

GROUPS: dict[str, Group] = {group.name: group for group in _GROUPS}
MAPS: dict[str, Map] = {row.name: row for row in _MAPS}
NUMBERS: dict[str, tuple[Group, Member]] = {
    group.full_name(member): (group, member) for group in _GROUPS for member in group.numbers
}
LESIONS = next(group.name for group in _GROUPS if group.source == "lesions")


def group_of(quantity: str) -> Group:
    """Return the group that a map, a group or a member (`rms.shortcut`) belongs to."""
    name = MAPS[quantity].number if quantity in MAPS else quantity
    return GROUPS[name.partition(".")[0]]


@cache
def scalar_names(group: str) -> tuple[str, ...]:
    """Return the names of a group's numbers, such as `rms.residual`."""
    return tuple(GROUPS[group].full_name(member) for member in GROUPS[group].numbers)


@cache
def lacking(variant: Variant) -> dict[str, str]:
    """Return what does not exist for a variant, and why: groups, members (`rms.shortcut`) and maps."""
    reasons: dict[str, str] = {}
    for group in GROUPS.values():
        if group.source == "introspect":
            reasons |= _lacking(group, variant)
    for row in MAPS.values():
        group, member = NUMBERS[row.number]
        why = group.lacking.get(variant) or member.lacking.get(variant)
        if why and group.source == "introspect":
            reasons[row.name] = why
    for group in GROUPS.values():
        if group.source != "introspect":
            reasons |= _lacking(group, variant)
    return reasons


def _lacking(group: Group, variant: Variant) -> Iterator[tuple[str, str]]:
    if variant in group.lacking:
        yield group.name, group.lacking[variant]
    for member in group.members:
        if variant in member.lacking:
            yield group.full_name(member), member.lacking[variant]


def reasons_absent(manifest: Manifest) -> Mapping[str, str]:
    """Return what does not exist for an artifact, and why: groups, members (`rms.shortcut`) and maps."""
    graph = manifest.graph("attribute")
    return _absent(manifest.variant, tuple(tensor.name for tensor in graph.outputs) if graph else ())


@cache  # an answer asks for every group of every block
def _absent(variant: Variant, outputs: tuple[str, ...]) -> Mapping[str, str]:
    of_variant = lacking(variant)
    missing = [
        group.name
        for group in GROUPS.values()
        if group.output not in ("", *outputs) and group.name not in of_variant
    ]
    return MappingProxyType(dict.fromkeys(missing, NOT_EXPORTED) | of_variant)


def why_absent(quantity: str, manifest: Manifest) -> str | None:
    """Return why a map, a group or a member does not exist for an artifact; None: it does."""
    reasons = reasons_absent(manifest)
    return reasons.get(quantity) or reasons.get(quantity.partition(".")[0])
