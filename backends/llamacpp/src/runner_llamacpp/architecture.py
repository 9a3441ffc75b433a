"""What kind of model a GGUF header describes, as far as running it depends on that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from runner.api import UnsupportedOperation

if TYPE_CHECKING:
    from runner.api import ModelHeader

__all__ = ["Pooling", "check_supported", "is_encoder", "pooling_of", "vocabulary_size"]

Pooling = Literal["mean", "cls", "last", "rank"]

#: ``<arch>.pooling_type`` as llama.cpp numbers it; 0 is none, for which mean is taken.
_POOLINGS: dict[int, Pooling] = {0: "mean", 1: "mean", 2: "cls", 3: "last", 4: "rank"}

#: Architectures without causal attention, whose headers need not say so.
_ENCODERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
    }
)
_ENCODER_DECODERS = frozenset({"t5", "t5encoder"})


def is_encoder(header: ModelHeader) -> bool:
    """Whether every token sees every other: such a model embeds, and cannot generate."""
    if header.architecture in _ENCODERS:
        return True
    return header.metadata.get(f"{header.architecture}.attention.causal") is False


def pooling_of(header: ModelHeader) -> Pooling:
    """How one vector is made of a text's token vectors; mean where the model names nothing."""
    return _POOLINGS.get(header.integer("pooling_type", 1), "mean")


def vocabulary_size(header: ModelHeader) -> int:
    """How many tokens there are."""
    return header.array_length("tokenizer.ggml.tokens") or header.integer("vocab_size")


def check_supported(header: ModelHeader) -> None:
    """Refuse what this backend cannot drive.

    :raises UnsupportedOperation: the architecture is one of them.
    """
    if header.architecture in _ENCODER_DECODERS:
        raise UnsupportedOperation(
            f'the backend llama.cpp cannot run models of architecture "{header.architecture}" '
            "(an encoder with a separate decoder): use a decoder-only model",
            param="model",
        )
