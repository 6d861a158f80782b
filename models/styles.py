"""Other projects' parameter names as a table. No other module knows foreign names.

A style is a list of pairs (foreign module, our module). A placeholder names what is counted and the number
from which the count starts: `layer{stage1}.{block0}` and `stages.{stage0}.layers.{block0}` are the same
place. The first row that fits wins, so later names of the same module are read and never written. To add a
project, add a style: `models.key_map` reads and writes it.
"""

from __future__ import annotations

import re

Row = tuple[str, str]
Rows = tuple[Row, ...]

# Usual names of the classifier, with which most styles end.
_HEADS: Rows = (
    ("fc", "head"),
    ("linear", "head"),
    ("classifier", "head"),
    ("classifier.1", "head"),
    ("output", "head"),
    ("head.fc", "head"),
    ("head", "head"),
    ("last_linear", "head"),
    ("logits", "head"),
    ("fc.0", "head"),
    ("fc.1", "head"),
    ("linear.0", "head"),
    ("linear.1", "head"),
    ("classifier.0", "head"),
    ("head.0", "head"),
    ("head.1", "head"),
)
_STEM: Rows = (("conv1", "stem.conv"), ("bn1", "stem.norm"))
_DEEP_STEM: Rows = (
    ("conv1.0", "stem.conv1"),
    ("conv1.1", "stem.norm1"),
    ("conv1.3", "stem.conv2"),
    ("conv1.4", "stem.norm2"),
    ("conv1.6", "stem.conv3"),
    ("bn1", "stem.norm3"),
)
_BRANCH: Rows = (
    ("layer{stage1}.{block0}.conv{conv1}", "stage{stage1}.{block0}.branch.conv{conv1}"),
    ("layer{stage1}.{block0}.bn{conv1}", "stage{stage1}.{block0}.branch.norm{conv1}"),
)
# In v2 the n-th BatchNorm comes before the n-th convolution: the first is our `preact`, the next `norm1`.
_PREACT_BRANCH: Rows = (
    ("layer{stage1}.{block0}.conv{conv1}", "stage{stage1}.{block0}.branch.conv{conv1}"),
    ("layer{stage1}.{block0}.bn1", "stage{stage1}.{block0}.preact.norm"),
    ("layer{stage1}.{block0}.bn{conv2}", "stage{stage1}.{block0}.branch.norm{conv1}"),
)
_SE: Rows = (
    ("layer{stage1}.{block0}.se.fc1", "stage{stage1}.{block0}.branch.se.reduce"),
    ("layer{stage1}.{block0}.se.fc2", "stage{stage1}.{block0}.branch.se.expand"),
    ("layer{stage1}.{block0}.fc1", "stage{stage1}.{block0}.branch.se.reduce"),
    ("layer{stage1}.{block0}.fc2", "stage{stage1}.{block0}.branch.se.expand"),
)
_PROJECTION: Rows = (
    ("layer{stage1}.{block0}.downsample.0", "stage{stage1}.{block0}.shortcut.conv"),
    ("layer{stage1}.{block0}.downsample.1", "stage{stage1}.{block0}.shortcut.norm"),
    ("layer{stage1}.{block0}.shortcut.0", "stage{stage1}.{block0}.shortcut.conv"),
    ("layer{stage1}.{block0}.shortcut.1", "stage{stage1}.{block0}.shortcut.norm"),
)
_POOLED_PROJECTION: Rows = (
    ("layer{stage1}.{block0}.downsample.1", "stage{stage1}.{block0}.shortcut.conv"),
    ("layer{stage1}.{block0}.downsample.2", "stage{stage1}.{block0}.shortcut.norm"),
)
_PYTORCHCV: Rows = (
    (
        "features.stage{stage1}.unit{block1}.body.conv{conv1}.conv",
        "stage{stage1}.{block0}.branch.conv{conv1}",
    ),
    ("features.stage{stage1}.unit{block1}.se.conv1", "stage{stage1}.{block0}.branch.se.reduce"),
    ("features.stage{stage1}.unit{block1}.se.conv2", "stage{stage1}.{block0}.branch.se.expand"),
)

# Up to the first "-" a key is a project's name; the rest is a kind of network that the project names
# differently.
STYLES: dict[str, Rows] = {
    # Also: akamaster, chenyaofo, kuangliu (v1, SE's BasicBlock), bearpaw (v1).
    "torchvision": (*_STEM, *_BRANCH, *_SE, *_PROJECTION, *_HEADS),
    "timm": (*_STEM, *_BRANCH, *_SE, *_PROJECTION, *_HEADS),
    "timm-c": (*_DEEP_STEM, *_BRANCH, *_SE, *_PROJECTION, *_HEADS),
    "timm-d": (*_DEEP_STEM, *_BRANCH, *_SE, *_POOLED_PROJECTION, *_HEADS),
    "timm-v2": (
        ("head.fc", "head"),
        ("stem.conv", "stem.conv"),
        ("stages.{stage0}.blocks.{block0}.conv{conv1}", "stage{stage1}.{block0}.branch.conv{conv1}"),
        ("stages.{stage0}.blocks.{block0}.norm1", "stage{stage1}.{block0}.preact.norm"),
        ("stages.{stage0}.blocks.{block0}.norm{conv2}", "stage{stage1}.{block0}.branch.norm{conv1}"),
        ("stages.{stage0}.blocks.{block0}.downsample.conv", "stage{stage1}.{block0}.shortcut.conv"),
        ("norm", "postact.norm"),
    ),
    "transformers": (
        ("classifier.1", "head"),
        ("resnet.embedder.embedder.convolution", "stem.conv"),
        ("resnet.embedder.embedder.normalization", "stem.norm"),
        (
            "resnet.encoder.stages.{stage0}.layers.{block0}.layer.{conv0}.convolution",
            "stage{stage1}.{block0}.branch.conv{conv1}",
        ),
        (
            "resnet.encoder.stages.{stage0}.layers.{block0}.layer.{conv0}.normalization",
            "stage{stage1}.{block0}.branch.norm{conv1}",
        ),
        (
            "resnet.encoder.stages.{stage0}.layers.{block0}.shortcut.convolution",
            "stage{stage1}.{block0}.shortcut.conv",
        ),
        (
            "resnet.encoder.stages.{stage0}.layers.{block0}.shortcut.normalization",
            "stage{stage1}.{block0}.shortcut.norm",
        ),
        *_HEADS,
    ),
    # Small images: bearpaw's pre-activation networks, and others that end in a BatchNorm. Not kuangliu's
    # PreActResNet and SENet18: they have none after the last stage, where v2 of ours has one.
    "cifar-v2": (
        ("conv1", "stem.conv"),
        *_PREACT_BRANCH,
        *_SE,
        *_PROJECTION[::2],  # projections have no BatchNorm
        ("bn", "postact.norm"),
        ("bn1", "postact.norm"),
        *_HEADS,
    ),
    # osmr/pytorchcv, as its networks for CIFAR have it; the stem of those for ImageNet is read, not written.
    "pytorchcv": (
        ("output", "head"),
        ("features.init_block.conv", "stem.conv"),
        ("features.init_block.bn", "stem.norm"),
        *_PYTORCHCV,
        (
            "features.stage{stage1}.unit{block1}.body.conv{conv1}.bn",
            "stage{stage1}.{block0}.branch.norm{conv1}",
        ),
        ("features.stage{stage1}.unit{block1}.identity_conv.conv", "stage{stage1}.{block0}.shortcut.conv"),
        ("features.stage{stage1}.unit{block1}.identity_conv.bn", "stage{stage1}.{block0}.shortcut.norm"),
        ("features.init_block.conv.conv", "stem.conv"),
        ("features.init_block.conv.bn", "stem.norm"),
    ),
    "pytorchcv-v2": (
        ("output", "head"),
        ("features.init_block", "stem.conv"),
        *_PYTORCHCV,
        ("features.stage{stage1}.unit{block1}.body.conv1.bn", "stage{stage1}.{block0}.preact.norm"),
        (
            "features.stage{stage1}.unit{block1}.body.conv{conv2}.bn",
            "stage{stage1}.{block0}.branch.norm{conv1}",
        ),
        ("features.stage{stage1}.unit{block1}.identity_conv", "stage{stage1}.{block0}.shortcut.conv"),
        ("features.post_activ.bn", "postact.norm"),
        ("features.init_block.conv", "stem.conv"),
    ),
    "pytorchcv-densenet": (
        ("output", "head"),
        ("features.init_block", "stem.conv"),
        ("features.stage{stage1}.unit{block1}.conv{conv1}.conv", "stage{stage1}.{block0}.branch.conv{conv1}"),
        ("features.stage{stage1}.unit{block1}.conv1.bn", "stage{stage1}.{block0}.preact.norm"),
        ("features.stage{stage1}.unit{block1}.conv{conv2}.bn", "stage{stage1}.{block0}.branch.norm{conv1}"),
        ("features.stage{stage1}.trans{stage1}.conv.bn", "stage{stage1}.transition.norm"),
        ("features.stage{stage1}.trans{stage1}.conv.conv", "stage{stage1}.transition.conv"),
        ("features.post_activ.bn", "postact.norm"),
    ),
    # weiaicunzai/pytorch-cifar100
    "weiaicunzai": (
        *_HEADS,
        ("conv1.0", "stem.conv"),
        ("conv1.1", "stem.norm"),
        ("conv{stage2}_x.{block0}.residual_function.0", "stage{stage1}.{block0}.branch.conv1"),
        ("conv{stage2}_x.{block0}.residual_function.1", "stage{stage1}.{block0}.branch.norm1"),
        ("conv{stage2}_x.{block0}.residual_function.3", "stage{stage1}.{block0}.branch.conv2"),
        ("conv{stage2}_x.{block0}.residual_function.4", "stage{stage1}.{block0}.branch.norm2"),
        ("conv{stage2}_x.{block0}.residual_function.6", "stage{stage1}.{block0}.branch.conv3"),
        ("conv{stage2}_x.{block0}.residual_function.7", "stage{stage1}.{block0}.branch.norm3"),
        ("conv{stage2}_x.{block0}.shortcut.0", "stage{stage1}.{block0}.shortcut.conv"),
        ("conv{stage2}_x.{block0}.shortcut.1", "stage{stage1}.{block0}.shortcut.norm"),
    ),
    # xternalz/WideResNet-pytorch; andreasveit/densenet-pytorch has the same names, and transitions.
    "xternalz": (
        *_HEADS,
        ("conv1", "stem.conv"),
        ("block{stage1}.layer.{block0}.conv{conv1}", "stage{stage1}.{block0}.branch.conv{conv1}"),
        ("block{stage1}.layer.{block0}.bn1", "stage{stage1}.{block0}.preact.norm"),
        ("block{stage1}.layer.{block0}.bn{conv2}", "stage{stage1}.{block0}.branch.norm{conv1}"),
        ("block{stage1}.layer.{block0}.convShortcut", "stage{stage1}.{block0}.shortcut.conv"),
        ("trans{stage0}.bn1", "stage{stage1}.transition.norm"),
        ("trans{stage0}.conv1", "stage{stage1}.transition.conv"),
        ("bn1", "postact.norm"),
    ),
    # Our own names: tensors that were trained or written here.
    "residuum": tuple(
        (name, name)
        for name in (
            *("stem.conv", "stem.norm", "stem.conv{conv1}", "stem.norm{conv1}"),
            *("stage{stage1}.{block0}.branch.conv{conv1}", "stage{stage1}.{block0}.branch.norm{conv1}"),
            *("stage{stage1}.{block0}.branch.se.reduce", "stage{stage1}.{block0}.branch.se.expand"),
            *("stage{stage1}.{block0}.preact.norm", "stage{stage1}.{block0}.transform.conv"),
            *("stage{stage1}.{block0}.shortcut.conv", "stage{stage1}.{block0}.shortcut.norm"),
            *("stage{stage1}.transition.norm", "stage{stage1}.transition.conv"),
            *("postact.norm", "head"),
        )
    ),
}
# Styles whose projections come after an average pool.
POOLED = frozenset({"timm-d"})
# Styles whose classifier is a 1x1 convolution.
CONVOLUTION_HEADS = frozenset({"timm-v2"})

# Prefixes and further entries that wrappers add.
WRAPPER = re.compile(r"^(?:module|_orig_mod|model|net|network|backbone|encoder|resnet|features)\.")
BESIDE = frozenset({"n_averaged"})  # torch.optim.swa_utils.AveragedModel
