"""Tail sampling: which traces keep their span bodies. Cost is in the ledger before this stage runs.

sampler      the engine: holds spans until their traces are decided, knows no rule
types        what engine and policy say to each other
thresholds   consistent probability sampling, as ``ot=th`` writes it
names        reasons and rules of decisions, as numbers
"""

from tollspan.processor.sample.memory import Memory
from tollspan.processor.sample.names import DROPPED, ERROR, PROBABILITY, REASONS, RULES
from tollspan.processor.sample.open_traces import explicit
from tollspan.processor.sample.plain import Plain, failed
from tollspan.processor.sample.rounds import Decision, Fates, Pending, Round
from tollspan.processor.sample.sampler import TailSampler
from tollspan.processor.sample.spill import Spill
from tollspan.processor.sample.thresholds import (
    ALWAYS,
    NEVER,
    RANDOM_BITS,
    adjusted_count,
    encode_threshold,
    threshold,
)
from tollspan.processor.sample.types import FULL, STRIPPED, Arrived, Due, Policy, Signs, Verdicts

__all__ = [
    "ALWAYS",
    "DROPPED",
    "ERROR",
    "FULL",
    "NEVER",
    "PROBABILITY",
    "RANDOM_BITS",
    "REASONS",
    "RULES",
    "STRIPPED",
    "Arrived",
    "Decision",
    "Due",
    "Fates",
    "Memory",
    "Pending",
    "Plain",
    "Policy",
    "Round",
    "Signs",
    "Spill",
    "TailSampler",
    "Verdicts",
    "adjusted_count",
    "encode_threshold",
    "explicit",
    "failed",
    "threshold",
]
