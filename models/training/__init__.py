"""Training: recipe, data, augmentation, the loop, and the checkpoint that it ends with."""
