"""Distillation methods, one file each."""

from eakd.distillers.base import Distiller, Progress, Terms, Total
from eakd.distillers.kd import KD, CrossEntropy, kd_loss

__all__ = ["KD", "CrossEntropy", "Distiller", "Progress", "Terms", "Total", "kd_loss"]
