"""What a ResNet is, how it is trained, and how weights of other projects are read."""
