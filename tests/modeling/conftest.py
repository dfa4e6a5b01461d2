"""Detectors small enough to build and step in a fraction of a second."""

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")
