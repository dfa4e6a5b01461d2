"""Measurements: losses on their own, training steps, and the table of detectors and losses.

`loss_*` and `captured_cases` belong to `bucketrank profile-loss`, `training_steps` to `bucketrank
table --timing`, `table`, `cells`, `cell_*`, `rows` and `report` to `bucketrank table`. They share
the timing, the progress display, the writer of tables and the plots. Timing losses needs no
Detectron2.
"""
