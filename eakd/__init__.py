"""EA-KD: Entropy-based Adaptive Knowledge Distillation."""

from eakd.weighting import Weighting, ea_weight, entropy

__version__ = "0.1.0"

__all__ = ["Weighting", "__version__", "ea_weight", "entropy"]
