"""Measurements: losses on their own, training steps, and the table of detectors and losses.

`loss_*` belong to `bucketrank profile-loss`, `training_steps` to `bucketrank table --timing`,
`table`, `cells`, `cell_*`, `rows` and `report` to `bucketrank table`. They share `timing`, `output`
(tables, CSV) and `plots`. Timing losses needs no Detectron2.
"""
