"""Training, evaluation and prediction with Detectron2; importing it registers the detectors."""

import logging
import warnings

from ..detectron2_setup import import_detectron2

# Torch's own, which a user can do nothing about: a CUDA toolkit without a GPU, a renamed function.
for name in ("torch.utils.cpp_extension", "torch.fx._symbolic_trace"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)

import_detectron2()  # without the warnings of its first import

from .. import modeling  # noqa: E402, F401  (imported to register)
