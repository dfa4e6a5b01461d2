"""Training, evaluation and prediction with Detectron2."""

import logging
import warnings

from ..environment import import_detectron2

# Torch's own, which a user can do nothing about: a CUDA toolkit without a GPU, a renamed function.
for name in ("torch.utils.cpp_extension", "torch.fx._symbolic_trace"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)

if import_detectron2():
    from .. import modeling  # noqa: F401  (imported to register)
