"""The classes of CIFAR-10 and CIFAR-100 (fine), and how their images are normalised (Krizhevsky 2009)."""

from __future__ import annotations

from artifact.manifest import Label

CIFAR_MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
CIFAR_STD = {10: (0.2470, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
"""
CIFAR_CLASSES = {10: CIFAR10.split(), 100: CIFAR100.split()}


def cifar_labels(num_classes: int) -> tuple[Label, ...]:
    """Return the classes of CIFAR-10 or CIFAR-100 in the order of the data set's files."""
    return tuple(Label(label=name.replace("_", " ")) for name in CIFAR_CLASSES[num_classes])
