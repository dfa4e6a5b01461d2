"""What the losses cost: time and memory, on made-up logits and on those of a training step.

Needs torch, fvcore and matplotlib; `capture` alone needs detectron2.
"""
