"""ResNets written as other projects write them, by their own names: an oracle for key map and arithmetic.

Shortcut option A pads half of the new channels before and half after; option B projects.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ForeignBlock(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int, bottleneck: bool, option: str, side: str) -> None:
        super().__init__()
        c_out = width * 4 if bottleneck else width
        self.bottleneck = bottleneck
        self.stride = stride
        self.extra = c_out - c_in
        self.side = side
        self.pad_after = False
        if bottleneck:
            self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(c_out)
        else:
            self.conv1 = nn.Conv2d(c_in, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        if option == "B" and (stride > 1 or self.extra):
            path = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
            setattr(self, side, path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        if hasattr(self, self.side):
            x = getattr(self, self.side)(x)
        elif self.stride > 1 or self.extra:
            sides = (0, self.extra) if self.pad_after else (self.extra // 2, self.extra // 2)
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *sides))
        return F.relu(x + y)


class ForeignResNet(nn.Module):
    """`side` names the projection and `head` the classifier: downsample and fc in torchvision's world."""

    def __init__(
        self,
        depths: tuple[int, ...],
        *,
        width: int = 64,
        bottleneck: bool = False,
        imagenet: bool = False,
        option: str = "B",
        side: str = "downsample",
        head: str = "fc",
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.imagenet = imagenet
        self.head = head
        self.num_stages = len(depths)
        self.conv1 = (
            nn.Conv2d(3, width, 7, 2, 3, bias=False) if imagenet else nn.Conv2d(3, width, 3, 1, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        c_in = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(ForeignBlock(c_in, width * 2**stage, stride, bottleneck, option, side))
                c_in = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        setattr(self, head, nn.Linear(c_in, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.num_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.head)(F.adaptive_avg_pool2d(x, 1).flatten(1))
