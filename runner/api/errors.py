"""Every error Runner raises on purpose, as one tree.

Each class fixes what a client may rely on: ``code`` (stable, snake_case), ``status`` (HTTP) and
``type`` (OpenAI's word for it). The message says what failed, with which value, and what to do.

::

    RunnerError
      RequestError 400            invalid_request
        ContextLengthExceeded     context_length_exceeded
        UnsupportedParameter      unsupported_parameter
        UnsupportedOperation      unsupported_operation
        BodyTooLarge 413          body_too_large
      AuthenticationError 401     unauthorized
      ForbiddenError 403          forbidden
      NotFoundError 404           not_found
        ModelNotFound             model_not_found
        BackendNotFound           backend_not_found
      MethodNotAllowed 405        method_not_allowed
      ConflictError 409           conflict
        ModelInUse                model_in_use
      ModelFileError 422          model_file_invalid
      CapacityError 503           no_memory_now
        QueueFull                 queue_full
        ShuttingDown              shutting_down
        ModelTooLarge 507         model_too_large
      WorkerError 502             worker_failed
        WorkerStartFailed         worker_start_failed
        WorkerDied                worker_died
        WorkerTimeout 504         worker_timeout
      StoreError 500              store_error
        DigestMismatch            digest_mismatch
        StoreLocked 409           store_locked
      PluginError 500             plugin_error
        PluginLoadFailed          plugin_load_failed
        PluginDuplicate           plugin_duplicate
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "BackendNotFound",
    "BodyTooLarge",
    "CapacityError",
    "ConflictError",
    "ContextLengthExceeded",
    "DigestMismatch",
    "ForbiddenError",
    "MethodNotAllowed",
    "ModelFileError",
    "ModelInUse",
    "ModelNotFound",
    "ModelTooLarge",
    "NotFoundError",
    "PluginDuplicate",
    "PluginError",
    "PluginLoadFailed",
    "QueueFull",
    "RequestError",
    "RunnerError",
    "ShuttingDown",
    "StoreError",
    "StoreLocked",
    "UnsupportedOperation",
    "UnsupportedParameter",
    "WorkerDied",
    "WorkerError",
    "WorkerStartFailed",
    "WorkerTimeout",
    "error_from_wire",
]


class RunnerError(Exception):
    """The root: something Runner can explain.

    :param message: what failed, to what, and what to do next.
    :param param: the request field at fault, as a path (``messages[0].role``), if there is one.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    #: False tells clients (``x-should-retry``) that the same request cannot succeed later.
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(RunnerError):
    """The request itself is wrong; nothing was started for it."""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(RequestError):
    """The prompt leaves no room in the model's context. Nothing is truncated in silence."""

    code = "context_length_exceeded"

    def __init__(self, *, n_prompt: int, context_size: int, param: str = "messages") -> None:
        super().__init__(
            f"the prompt has {n_prompt} tokens and the context holds {context_size}, of which at "
            "least one must be left for the answer: shorten the prompt, or load the model with a "
            "larger context",
            param=param,
        )
        self.n_prompt = n_prompt
        self.context_size = context_size


class UnsupportedParameter(RequestError):
    """A known parameter that this version, or this backend, does not implement."""

    code = "unsupported_parameter"


class UnsupportedOperation(RequestError):
    """The model or the backend cannot do what was asked (for example embeddings)."""

    code = "unsupported_operation"


class BodyTooLarge(RequestError):
    """The request body is over the configured limit."""

    code = "body_too_large"
    status = 413

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(
            f"the request body is larger than the limit of {limit_bytes} bytes; "
            "the daemon's setting body_limit_bytes raises it"
        )


class AuthenticationError(RunnerError):
    """No API key, or a wrong one, on a listener that asks for one."""

    code = "unauthorized"
    status = 401
    type = "authentication_error"


class ForbiddenError(RunnerError):
    """Understood, and refused: a foreign origin or host, or an operation of the socket only."""

    code = "forbidden"
    status = 403
    type = "permission_error"


class NotFoundError(RunnerError):
    """There is no such thing."""

    code = "not_found"
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFoundError):
    """The store holds no model of that name."""

    code = "model_not_found"

    def __init__(self, reference: str, *, hint: str | None = None) -> None:
        hint = hint if hint is not None else f"pull it first: runner pull {reference}"
        super().__init__(f'model not found: "{reference}"' + (f" ({hint})" if hint else ""))
        self.param = "model"


class BackendNotFound(NotFoundError):
    """No backend plugin has that name."""

    code = "backend_not_found"

    def __init__(self, name: str, *, known: tuple[str, ...] = ()) -> None:
        listing = ", ".join(known) or "none"
        super().__init__(f'backend not found: "{name}" (installed: {listing})')
        self.name = name
        self.known = known


class MethodNotAllowed(RunnerError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405
    type = "invalid_request_error"


class ConflictError(RunnerError):
    """What was asked contradicts the present state."""

    code = "conflict"
    status = 409
    type = "invalid_request_error"


class ModelInUse(ConflictError):
    """The model is loaded and answering; it is not pulled away under its worker."""

    code = "model_in_use"


class ModelFileError(RunnerError):
    """A file that should be a model is not one, or is damaged or hostile."""

    code = "model_file_invalid"
    status = 422
    type = "invalid_request_error"


class CapacityError(RunnerError):
    """There is no room now; later there may be."""

    code = "no_memory_now"
    status = 503
    is_retryable = True


class QueueFull(CapacityError):
    """Too many requests wait already."""

    code = "queue_full"


class ShuttingDown(CapacityError):
    """The daemon is stopping and takes no new work."""

    code = "shutting_down"


class ModelTooLarge(CapacityError):
    """The model can never fit on this machine as configured."""

    code = "model_too_large"
    status = 507
    is_retryable = False


class WorkerError(RunnerError):
    """The process that runs the model failed."""

    code = "worker_failed"
    status = 502
    is_retryable = True


class WorkerStartFailed(WorkerError):
    """The worker did not become ready; the message carries its own words."""

    code = "worker_start_failed"
    is_retryable = False


class WorkerDied(WorkerError):
    """The worker ended while a request was in it; the next request starts a new one."""

    code = "worker_died"


class WorkerTimeout(WorkerError):
    """The worker stopped making progress."""

    code = "worker_timeout"
    status = 504


class StoreError(RunnerError):
    """The model store cannot be read or written."""

    code = "store_error"


class DigestMismatch(StoreError):
    """Bytes are not what their digest says."""

    code = "digest_mismatch"


class StoreLocked(StoreError):
    """Another daemon owns the store."""

    code = "store_locked"
    status = 409


class PluginError(RunnerError):
    """A plugin failed; everything else goes on without it."""

    code = "plugin_error"


class PluginLoadFailed(PluginError):
    """The plugin could not be imported or registered."""

    code = "plugin_load_failed"


class PluginDuplicate(PluginError):
    """Two plugins claim one name."""

    code = "plugin_duplicate"


def _tree(root: type[RunnerError]) -> dict[str, type[RunnerError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            found.update(_tree(child))
    return found


_BY_CODE = _tree(RunnerError)


def error_from_wire(code: str, message: str, *, param: str | None = None) -> RunnerError:
    """Build again an error that crossed a process or HTTP border as code, message and param.

    An unknown code becomes a plain :class:`RunnerError`.
    """
    cls = _BY_CODE.get(code, RunnerError)
    error = cls.__new__(cls)
    RunnerError.__init__(error, message, param=param)
    return error
