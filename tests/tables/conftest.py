"""Tables need Detectron2."""

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")
