"""Training, evaluation and prediction with Detectron2; importing it registers the detectors."""

import logging
import warnings

# Torch's own, which a user can do nothing about: a CUDA toolkit without a GPU, a renamed function.
for name in ("torch.utils.cpp_extension", "torch.fx._symbolic_trace"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)

from .. import modeling  # noqa: E402, F401  (imported to register)
