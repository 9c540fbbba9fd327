"""Figures about subjects, triggers and attacks; none of them is a verdict."""

from gifthorse.analysis.attribution import (
    Maps,
    Shift,
    attention_shift,
    grad_cam,
    map_distance,
    saliency,
)
from gifthorse.analysis.collecting import Collected, collect, stages
from gifthorse.analysis.distance import ClassDistances, asymmetry, distances, increase
from gifthorse.analysis.landscape import (
    Landscape,
    LossMap,
    directions,
    landscape,
    local_minima,
    minima,
)
from gifthorse.analysis.paths import ActivationPath, Silenced, activation_path, silenced, tac
from gifthorse.analysis.projection import (
    FeatureView,
    feature_view,
    linear_probe,
    project,
    silhouette,
)
from gifthorse.analysis.pruning import (
    align_asr,
    align_size,
    grid,
    pixels,
    ranking,
    success_over_size,
    top_k,
)
from gifthorse.analysis.robustness import TABLE_5, enlarged, rescaled, robustness, rotated
from gifthorse.analysis.separation import Separation, separation, separation_curve
from gifthorse.analysis.similarity import Centroids, Discrepancy, centroids, linear_cka, mmd
from gifthorse.analysis.transfer import Transfer, TransferOutcome

__all__ = [
    "TABLE_5",
    "ActivationPath",
    "Centroids",
    "ClassDistances",
    "Collected",
    "Discrepancy",
    "FeatureView",
    "Landscape",
    "LossMap",
    "Maps",
    "Separation",
    "Shift",
    "Silenced",
    "Transfer",
    "TransferOutcome",
    "activation_path",
    "align_asr",
    "align_size",
    "asymmetry",
    "attention_shift",
    "centroids",
    "collect",
    "directions",
    "distances",
    "enlarged",
    "feature_view",
    "grad_cam",
    "grid",
    "increase",
    "landscape",
    "linear_cka",
    "linear_probe",
    "local_minima",
    "map_distance",
    "minima",
    "mmd",
    "pixels",
    "project",
    "ranking",
    "rescaled",
    "robustness",
    "rotated",
    "saliency",
    "separation",
    "separation_curve",
    "silenced",
    "silhouette",
    "stages",
    "success_over_size",
    "tac",
    "top_k",
]
