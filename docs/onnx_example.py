"""Detect objects by an exported file: python onnx_example.py detector.onnx photo.jpg found.png

Needs onnxruntime, numpy and pillow.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

file, photo, out = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
metadata = session.get_modelmeta().custom_metadata_map
names = json.loads(metadata["class_names"])
threshold = float(metadata["score_threshold"])
size = json.loads(metadata["image_size"])  # null: any

picture = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
given = picture.resize((size[1], size[0])) if size else picture
inputs = {"picture": np.asarray(given)}
boxes, scores, classes = session.run(["boxes", "scores", "classes"], inputs)
boxes = boxes * np.tile(np.divide(picture.size, given.size), 2)

draw = ImageDraw.Draw(picture)
for box, score, index in zip(boxes.tolist(), scores, classes, strict=True):
    if score >= threshold:
        print(f"{names[index]} {score:.3f}", *(f"{corner:.2f}" for corner in box))
        draw.rectangle(box, outline="red", width=2)
picture.save(out)
