"""Serves pretrained ResNets and shows what every residual block adds. Importing this package is cheap."""
