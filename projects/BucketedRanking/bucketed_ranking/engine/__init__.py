"""Training, evaluation and prediction with Detectron2."""
