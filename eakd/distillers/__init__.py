"""Distillation methods, one file each."""

from eakd.distillers.base import Distiller, Progress, Terms, Total
from eakd.distillers.ctkd import CTKD, cosine_lambda, curriculum_temperature
from eakd.distillers.dkd import DKD, dkd_loss, non_target_class_loss, target_class_loss
from eakd.distillers.fcfd import FCFD
from eakd.distillers.kd import KD, CrossEntropy, kd_loss
from eakd.distillers.mld import MLD, MLDLosses, mld_losses
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
    "MLDLosses",
    "Progress",
    "ReviewKD",
    "Terms",
    "Total",
    "cosine_lambda",
    "curriculum_temperature",
    "dkd_loss",
    "kd_loss",
    "mld_losses",
    "non_target_class_loss",
    "standardize",
    "target_class_loss",
]
