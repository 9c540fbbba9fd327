"""Repair a model: a remedy, what it cost, what it achieved, and the file that comes of it."""

from gifthorse.repairing.curing import FLIP, Recovering, Repaired, Trial, repair, spread
from gifthorse.repairing.known import Scanned, Truth, needs_triggers, open_scan, open_truth
from gifthorse.repairing.records import Order, record, write

__all__ = [
    "FLIP",
    "Order",
    "Recovering",
    "Repaired",
    "Scanned",
    "Trial",
    "Truth",
    "needs_triggers",
    "open_scan",
    "open_truth",
    "record",
    "repair",
    "spread",
    "write",
]
