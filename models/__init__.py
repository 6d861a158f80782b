"""What a ResNet is, how it is trained, and how an image becomes its input."""
