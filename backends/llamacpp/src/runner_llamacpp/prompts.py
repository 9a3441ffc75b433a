"""From requests to tokens."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from runner.api import ContextLengthExceeded, RequestError
from runner.chat.template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api import ChatRequest, CompletionRequest, EmbeddingRequest
    from runner_llamacpp.vocabulary import Vocabulary

__all__ = ["Prompts", "embedding_inputs", "read_template"]


class Prompts:
    """Makes the prompts of a generating model.

    :param template_source: its chat template; None when it has none.
    :param n_enough: a prompt of this many tokens is refused anyway (see ``Vocabulary.tokenise``).
    """

    def __init__(
        self, vocabulary: Vocabulary, template_source: str | None, *, n_enough: int
    ) -> None:
        self._vocabulary = vocabulary
        self._source = template_source
        self._n_enough = n_enough
        self._template: ChatTemplate | None = None

    def chat(self, request: ChatRequest) -> array[int]:
        """The tokens of a rendered chat.

        :raises RequestError: there is no template, or it refuses the messages.
        """
        return self._text(self._chat_template().render(request.messages), param="messages")

    def completion(self, request: CompletionRequest) -> list[array[int]]:
        """The tokens of each prompt.

        :raises RequestError: a prompt is empty, or names a token that does not exist.
        """
        return [
            self._text(prompt, param="prompt")
            if isinstance(prompt, str)
            else token_ids(prompt, self._vocabulary, param="prompt")
            for prompt in request.prompts
        ]

    def _text(self, text: str, *, param: str) -> array[int]:
        """A text as the model was trained on it: behind one bos token, if it wants that.

        Templates often write the bos themselves; it is not doubled. The eos that some vocabularies
        put behind every text is left out: nothing would follow it.
        """
        vocabulary = self._vocabulary
        tokens = vocabulary.tokenise(text, add_special=False, n_enough=self._n_enough)
        wants_bos = vocabulary.add_bos or not tokens
        if wants_bos and vocabulary.bos >= 0 and tokens[:1] != array("i", [vocabulary.bos]):
            tokens.insert(0, vocabulary.bos)
        if not tokens:
            raise RequestError(f"{param} is empty, and this model needs a first token", param=param)
        return tokens

    def _chat_template(self) -> ChatTemplate:
        """Compiled when it is first needed: a broken one does not keep completions from working."""
        if self._template is None:
            if self._source is None:
                raise RequestError(
                    "this model has no chat template, so it was not made for chat: "
                    "use /v1/completions with a prompt",
                    param="messages",
                )
            vocabulary = self._vocabulary
            self._template = ChatTemplate(
                self._source,
                bos=vocabulary.spelling(vocabulary.bos),
                eos=vocabulary.spelling(vocabulary.eos),
            )
        return self._template


def embedding_inputs(
    request: EmbeddingRequest, vocabulary: Vocabulary, *, context_size: int
) -> list[array[int]]:
    """The tokens of each text, with what the model wants around a text (``[CLS]`` …).

    :raises RequestError: an input is empty or does not fit, or names a token that does not exist.
    """
    inputs = [
        vocabulary.tokenise(text, add_special=True, n_enough=context_size)
        if isinstance(text, str)
        else token_ids(text, vocabulary, param="input")
        for text in request.inputs
    ]
    if not inputs or any(len(tokens) == 0 for tokens in inputs):
        raise RequestError("input is empty: an embedding needs some text", param="input")
    for tokens in inputs:
        if len(tokens) > context_size:
            raise ContextLengthExceeded(
                n_prompt=len(tokens), context_size=context_size, param="input"
            )
    return inputs


def token_ids(ids: Sequence[int], vocabulary: Vocabulary, *, param: str) -> array[int]:
    """A prompt given as token ids.

    :raises RequestError: it is empty, or a token does not exist.
    """
    if not ids:
        raise RequestError(f"{param} is empty: give at least one token", param=param)
    for token in ids:
        if not 0 <= token < vocabulary.n_vocab:
            raise RequestError(
                f"{param} names token {token}, and the model's tokens are "
                f"0 to {vocabulary.n_vocab - 1}",
                param=param,
            )
    return array("i", ids)


def read_template(paths: Sequence[str], embedded: str | None) -> str | None:
    """A model's template: a file that came with it stands above the one inside its weights."""
    return Path(paths[0]).read_text(encoding="utf-8") if paths else embedded
