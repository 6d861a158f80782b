"""Pictures of an introspection: sheets, blocks and comparisons, drawn with Pillow."""
