"""The local model store: an OCI image layout that one daemon owns."""

from runner.store.artifact import ModelConfig
from runner.store.records import Removal, StoredModel
from runner.store.references import Reference, normalise, parse_model_id, parse_reference
from runner.store.store import ModelStore

__all__ = [
    "ModelConfig",
    "ModelStore",
    "Reference",
    "Removal",
    "StoredModel",
    "normalise",
    "parse_model_id",
    "parse_reference",
]
