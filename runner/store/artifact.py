"""A model as an OCI artifact in Docker's format: media types, manifest and config.

What is written here depends on the model's bytes and file names only: no clock, no owner, no mtime.
So the same file always gives the same manifest, whose digest is the model's ID.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from runner.api.errors import ModelFileError, StoreError
from runner.api.model import ArraySummary, FileRole, ModelHeader
from runner.formats.describe import (
    format_parameters,
    format_size,
    parameter_count,
    quantization,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api.model import MetadataValue

__all__ = [
    "INDEX_TYPE",
    "MANIFEST_TYPE",
    "Artifact",
    "ConfigFile",
    "Descriptor",
    "Layer",
    "Manifest",
    "ModelConfig",
    "build_artifact",
    "decode_manifest",
    "merge_shards",
    "parse_artifact",
    "referenced_digests",
    "role_of",
    "sha256_of",
]

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_V01 = "application/vnd.docker.ai.model.config.v0.1+json"
CONFIG_V02 = "application/vnd.docker.ai.model.config.v0.2+json"
_CONFIG_TYPES = (CONFIG_V01, CONFIG_V02)

#: Stands for the time of creation, which must not make two packagings of one file differ.
_CREATED = "1970-01-01T00:00:00Z"
#: Longer metadata arrays (vocabularies) are left out of the config.
_MAX_ARRAY = 50

_WEIGHTS: dict[str, str] = {"gguf": "application/vnd.docker.ai.gguf.v3"}
_ROLES: dict[str, FileRole] = {
    "application/vnd.docker.ai.gguf.v3": "weights",
    "application/vnd.docker.ai.mmproj": "projector",
    "application/vnd.docker.ai.chat.template.jinja": "chat_template",
    "application/vnd.docker.ai.license": "license",
}


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """OCI's pointer to a blob."""

    media_type: str
    digest: str
    size: int
    artifact_type: str | None = None
    platform: dict[str, Any] | None = None
    urls: tuple[str, ...] | None = None
    data: str | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An OCI image manifest."""

    schema_version: int = 2
    media_type: str = MANIFEST_TYPE
    config: Descriptor
    layers: tuple[Descriptor, ...]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What Docker Model Runner tells about a model, with its field names."""

    format: str = ""
    quantization: str = ""
    parameters: str = ""
    architecture: str = ""
    size: str = ""
    gguf: dict[str, str] = {}
    safetensors: dict[str, str] = {}
    diffusers: dict[str, str] = {}
    context_size: int | None = None


class _Created(msgspec.Struct, frozen=True):
    created: str | None = None


class _RootFs(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "rootfs"
    diff_ids: tuple[str, ...] = ()


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """The config blob: Docker's model config v0.1 (and v0.2, which has the same shape)."""

    config: ModelConfig
    descriptor: _Created = _Created()
    rootfs: _RootFs = _RootFs()


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """Manifest and config of one model, decoded."""

    digest: str
    manifest: Manifest
    config: ModelConfig

    @property
    def size_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.size for layer in self.manifest.layers)


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A file that will be a layer."""

    role: FileRole
    #: Its path inside the model, with ``/``.
    name: str
    digest: str
    size_bytes: int
    #: Of weights only.
    header: ModelHeader | None = None


def sha256_of(data: bytes) -> str:
    """The digest of some bytes, ``sha256:<64 hex>``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def role_of(layer: Descriptor) -> FileRole | None:
    """What a layer is to the model; None for what Runner has no use for."""
    return _ROLES.get(layer.media_type)


def build_artifact(layers: Sequence[Layer]) -> tuple[bytes, bytes]:
    """Manifest and config of these layers, as the bytes to store.

    :raises ModelFileError: the weights are of a format that cannot be packaged.
    """
    headers = [layer.header for layer in layers if layer.header is not None]
    weights_bytes = sum(layer.size_bytes for layer in layers if layer.role == "weights")
    config = msgspec.json.encode(
        ConfigFile(
            config=_model_config(headers, weights_bytes),
            descriptor=_Created(_CREATED),
            rootfs=_RootFs(diff_ids=tuple(layer.digest for layer in layers)),
        )
    )
    manifest = Manifest(
        config=Descriptor(media_type=CONFIG_V01, digest=sha256_of(config), size=len(config)),
        layers=tuple(_describe_layer(layer) for layer in layers),
    )
    return msgspec.json.encode(manifest), config


def _describe_layer(layer: Layer) -> Descriptor:
    metadata = {
        "name": layer.name,
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": layer.size_bytes,
        "typeflag": 0,
    }
    return Descriptor(
        media_type=_media_type(layer),
        digest=layer.digest,
        size=layer.size_bytes,
        annotations={
            "org.cncf.model.filepath": layer.name,
            "org.cncf.model.file.metadata+json": msgspec.json.encode(metadata).decode(),
            "org.cncf.model.file.mediatype.untested": "false",
        },
    )


def _media_type(layer: Layer) -> str:
    if layer.header is not None:
        if layer.header.format not in _WEIGHTS:
            raise ModelFileError(
                f"{layer.name}: models of the format {layer.header.format} cannot be stored; "
                f"these can: {', '.join(_WEIGHTS)}"
            )
        return _WEIGHTS[layer.header.format]
    return next(media_type for media_type, role in _ROLES.items() if role == layer.role)


def _model_config(headers: Sequence[ModelHeader], weights_bytes: int) -> ModelConfig:
    header = merge_shards(headers)
    metadata = {
        key: text for key, value in header.metadata.items() if (text := _as_text(value)) is not None
    }
    return ModelConfig(
        format=header.format,
        quantization=quantization(header),
        parameters=format_parameters(parameter_count(header)),
        architecture=header.architecture,
        size=format_size(weights_bytes),
        gguf=dict(sorted(metadata.items())) if header.format == "gguf" else {},
        context_size=header.context_length or None,
    )


def merge_shards(headers: Sequence[ModelHeader]) -> ModelHeader:
    """One header for a model in several files: the first one's metadata, everybody's tensors."""
    first = headers[0]
    return msgspec.structs.replace(
        first,
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
        file_bytes=sum(header.file_bytes for header in headers),
    )


def _as_text(value: MetadataValue) -> str | None:
    """A metadata value as Docker Model Runner writes it; None when it is left out."""
    if isinstance(value, ArraySummary):
        return None
    if isinstance(value, list):
        return ", ".join(_scalar(item) for item in value) if len(value) <= _MAX_ARRAY else None
    return _scalar(value)


def _scalar(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)


def parse_artifact(digest: str, manifest: bytes, config: bytes) -> Artifact:
    """Decode bytes whose digests were checked.

    :raises StoreError: they are no model of a kind that this version reads.
    """
    decoded = decode_manifest(digest, manifest)
    if decoded.config.media_type not in _CONFIG_TYPES:
        raise StoreError(
            f"{digest} is not a model that this version reads: its config has the type "
            f"{decoded.config.media_type} (supported: {', '.join(_CONFIG_TYPES)})"
        )
    try:
        file = msgspec.json.decode(config, type=ConfigFile)
    except msgspec.DecodeError as exc:
        raise StoreError(
            f"the config {decoded.config.digest} of model {digest} is broken: {exc}"
        ) from exc
    return Artifact(digest=digest, manifest=decoded, config=file.config)


def decode_manifest(digest: str, manifest: bytes) -> Manifest:
    """Decode a manifest whose digest was checked.

    :raises StoreError: it is not an OCI image manifest.
    """
    try:
        return msgspec.json.decode(manifest, type=Manifest)
    except msgspec.DecodeError as exc:
        raise StoreError(f"the manifest {digest} is broken: {exc}") from exc


class _Pointer(msgspec.Struct):
    digest: str


class _AnyManifest(msgspec.Struct):
    """Whatever points at blobs: manifests of images and artifacts, and indexes."""

    config: _Pointer | None = None
    subject: _Pointer | None = None
    layers: tuple[_Pointer, ...] = ()
    blobs: tuple[_Pointer, ...] = ()
    manifests: tuple[_Pointer, ...] = ()


def referenced_digests(digest: str, manifest: bytes) -> tuple[list[str], list[str]]:
    """The blobs and the further manifests that a manifest or image index points at.

    :raises StoreError: it is neither.
    """
    try:
        found = msgspec.json.decode(manifest, type=_AnyManifest)
    except msgspec.DecodeError as exc:
        raise StoreError(f"the manifest {digest} is broken: {exc}") from exc
    pointers = [*found.layers, *found.blobs, *(p for p in (found.config, found.subject) if p)]
    return [pointer.digest for pointer in pointers], [pointer.digest for pointer in found.manifests]
