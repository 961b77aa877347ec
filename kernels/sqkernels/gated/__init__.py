"""The gated product of a model's feed-forward layers in one launch."""

from sqkernels.gated.api import ACTIVATIONS, gated

__all__ = ["ACTIVATIONS", "gated"]
