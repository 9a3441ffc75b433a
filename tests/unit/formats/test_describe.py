"""What people are told of a model."""

import pytest

from runner.api.model import MetadataValue, ModelHeader, TensorInfo
from runner.formats.describe import format_parameters, format_size, parameter_count, quantization


def _header(
    tensors: tuple[TensorInfo, ...] = (), metadata: dict[str, MetadataValue] | None = None
) -> ModelHeader:
    return ModelHeader(
        format="gguf",
        version=3,
        architecture="llama",
        metadata=metadata or {},
        tensors=tensors,
        file_bytes=0,
    )


TENSORS = (
    TensorInfo(name="embd", shape=(64, 100), dtype="Q4_K", size_bytes=3600),
    TensorInfo(name="norm", shape=(64,), dtype="F32", size_bytes=256),
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00K"),
        (361_820_000, "361.82M"),
        (134_515_008, "134.52M"),
        (999_999_999, "1.00B"),
        (8_030_261_248, "8.03B"),
        (1_000_000_000_000, "1.00T"),
        (1234 * 10**12, "1234.00T"),
    ],
)
def test_parameters_are_scaled_by_thousands(count: int, text: str) -> None:
    assert format_parameters(count) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.00KiB"), (268_804_096, "256.35MiB"), (2**30, "1.00GiB")],
)
def test_sizes_are_scaled_by_1024(size: int, text: str) -> None:
    assert format_size(size) == text


def test_parameters_are_the_elements_of_all_tensors() -> None:
    assert parameter_count(_header(TENSORS)) == 6464


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"general.file_type": 15}, "Q4_K_M"),
        ({"general.file_type": 1024 + 15}, "Q4_K_M"),
        ({"general.file_type": 9999}, "Q4_K"),
        ({"general.file_type": "15"}, "Q4_K"),
        ({}, "Q4_K"),
    ],
)
def test_the_quantization_is_the_file_type_or_what_most_bytes_are(
    metadata: dict[str, MetadataValue], name: str
) -> None:
    assert quantization(_header(TENSORS, metadata)) == name


def test_the_quantization_of_nothing_is_unknown() -> None:
    assert quantization(_header()) == "unknown"
