"""Filters: which of these images carry a trigger?"""

from gifthorse.core.types import Filter
from gifthorse.filtering.activation_clustering import ActivationClustering
from gifthorse.filtering.ensemble import Ensemble
from gifthorse.filtering.neo import NEO
from gifthorse.filtering.spectral_signatures import SpectralSignatures
from gifthorse.filtering.strip import STRIP

FILTERS: dict[str, Filter] = {
    "activation_clustering": ActivationClustering(),
    "activation_clustering_dataset": ActivationClustering(mode="dataset"),
    "ensemble": Ensemble(),
    "neo": NEO(),
    "spectral_signatures": SpectralSignatures(),
    "spectral_signatures_dataset": SpectralSignatures(mode="dataset"),
    "strip": STRIP(),
}

__all__ = ["FILTERS", "NEO", "STRIP", "ActivationClustering", "Ensemble", "SpectralSignatures"]
