"""How a loss looks in every plot: colour by objective, line and marker by algorithm."""

from .losses import LOSS_NAMES

# Okabe and Ito's colours, told apart by the colour-blind, too.
_COLOURS = {
    "ap": "#0072B2", "alrp": "#009E73", "rs": "#D55E00",
    "focal": "#000000", "score": "#000000", "ce": "#7F7F7F", "sort": "#CC79A7",
    "qfl": "#56B4E9", "vfl": "#E69F00", "mal": "#B8A000",
}  # fmt: skip
_LINES = {"loop": (":", "o"), "bucketed": ("--", "^"), "exact": ("-", "s")}
_REFERENCE_LINE = ("-.", "D")
LABELS = {
    "ap": "AP, loop", "alrp": "aLRP, loop", "rs": "RS, loop",
    "bap": "AP, bucketed (BAP)", "brs": "RS, bucketed (BRS)",
    "ap-exact": "AP, exact", "alrp-exact": "aLRP, exact", "rs-exact": "RS, exact",
    "focal": "focal loss (fvcore)", "score": "score-based (its own loss)",
    "qfl": "quality focal", "vfl": "varifocal", "mal": "matchability-aware (MAL)",
    "ce": "cross-entropy", "sort": "one torch.sort, no loss",
}  # fmt: skip
"""In the order of legends."""


def style_of(loss: str) -> tuple[str, str, str]:
    """Colour, line style and marker of a loss or of a reference that it is compared with."""
    objective, algorithm = LOSS_NAMES.get(loss, (loss, None))
    return (_COLOURS[objective], *_LINES.get(algorithm, _REFERENCE_LINE))
