"""Distillation methods, one file each."""

from eakd.distillers.base import Distiller, Progress, Terms, Total
from eakd.distillers.ctkd import CTKD
from eakd.distillers.dkd import DKD
from eakd.distillers.fcfd import FCFD
from eakd.distillers.kd import KD, CrossEntropy, kd_loss
from eakd.distillers.mld import MLD
from eakd.distillers.reviewkd import ReviewKD
from eakd.distillers.standardization import standardize

__all__ = [
    "CTKD",
    "DKD",
    "FCFD",
    "KD",
    "MLD",
    "CrossEntropy",
    "Distiller",
    "Progress",
    "ReviewKD",
    "Terms",
    "Total",
    "kd_loss",
    "standardize",
]
