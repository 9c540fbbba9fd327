"""Repair a model: a remedy, what it cost, what it achieved, and the file that comes of it."""

from gifthorse.workflows.repair.curing import FLIP, Recovering, Repaired, repair, spread
from gifthorse.workflows.repair.known import (
    Scanned,
    Truth,
    needs_triggers,
    open_known,
    open_scan,
    open_truth,
)
from gifthorse.workflows.repair.records import Order, outputs, record, write

__all__ = [
    "FLIP",
    "Order",
    "Recovering",
    "Repaired",
    "Scanned",
    "Truth",
    "needs_triggers",
    "open_known",
    "open_scan",
    "open_truth",
    "outputs",
    "record",
    "repair",
    "spread",
    "write",
]
