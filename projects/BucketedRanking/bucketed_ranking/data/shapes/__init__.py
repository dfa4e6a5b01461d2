"""The embedded data set of textured shapes in COCO format, generated on first use.

``folder`` makes its files, ``annotations`` writes them in COCO format, ``scene`` composes a
picture, ``drawing`` paints it, and ``classes`` holds what the classes look like.
"""

from .folder import SEED, VERSION, annotations_file, ensure_shapes, shapes_folder

__all__ = ["SEED", "VERSION", "annotations_file", "ensure_shapes", "shapes_folder"]
