"""The engine: answers every chat with its last message, in capitals."""

from collections.abc import Iterator

from runner.api import (
    ChatRequest,
    ChoiceFinished,
    ContextLengthExceeded,
    Delta,
    EngineRequest,
    Event,
    Finished,
    SequentialEngine,
    Started,
    UnsupportedOperation,
    Usage,
)


class ShoutEngine(SequentialEngine):
    """One request at a time, a word per step."""

    def __init__(self, context_size: int) -> None:
        super().__init__()
        self._context_size = context_size

    def validate(self, request: EngineRequest) -> None:
        """Refuse what cannot be done before anything is queued."""
        if not isinstance(request, ChatRequest):
            raise UnsupportedOperation("shout can only chat")
        n_prompt = len(request.messages[-1].content.split())
        if n_prompt >= self._context_size:
            raise ContextLengthExceeded(n_prompt=n_prompt, context_size=self._context_size)

    def generate(self, request: EngineRequest) -> Iterator[Event]:
        """Yield the events of one request; every yield is a point where it may be cancelled."""
        assert isinstance(request, ChatRequest)
        words = request.messages[-1].content.upper().split()
        limit = request.generation.max_tokens
        said = words if limit is None else words[:limit]
        yield Started(request_id=request.id, n_prompt=len(words))
        for position, word in enumerate(said):
            text = word if position == 0 else f" {word}"
            yield Delta(request_id=request.id, index=0, text=text)
        reason = "stop" if len(said) == len(words) else "length"
        yield ChoiceFinished(request_id=request.id, index=0, reason=reason)
        usage = Usage(n_prompt=len(words), n_completion=len(said))
        yield Finished(request_id=request.id, usage=usage)
