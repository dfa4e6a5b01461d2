"""Training, evaluation and prediction with Detectron2."""

import logging

# Warns, where a CUDA toolkit is installed without a GPU, about something nobody asked for.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
