"""A policy behind a chat endpoint: any server that speaks OpenAI's protocol, named `openai:MODEL[@BASE_URL]`.

    make("openai:my-model@http://127.0.0.1:8000/v1")       # vLLM, `transformers serve`, llama.cpp …
    make("openai:gpt-5")                                   # OpenAI's own, or OPENAI_BASE_URL

Such a policy answers in text. Its episodes have messages and no token ids, so it can be evaluated, collected from and
played against, but not trained. The key is read from `OPENAI_API_KEY`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

from mrlm_envs.llm.client import ChatClient, ChatError, ChatReply
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.inference.types import Conversation, End, Feed, Wait

PREFIX = "openai:"
RETRIES = 8  # of one question; a rate limit is met with patience
DEADLINE = 900.0  # seconds for one question, retries and the waits of `Retry-After` included


class ChatConversation(Protocol):
    """A `Conversation` in messages: after a `Feed` (its ids are empty), the engine answers or fails it."""

    @property
    def messages(self) -> Sequence[dict[str, Any]]:
        """The conversation so far."""
        ...

    @property
    def tools(self) -> Sequence[dict[str, Any]]:
        """Schemas of the tools that the policy may call."""
        ...

    @property
    def budget(self) -> int:
        """Most tokens of the coming turn."""
        ...

    def poll(self) -> Feed | Wait | End:
        """See `Conversation.poll`."""
        ...

    def answer(self, reply: ChatReply) -> None:
        """Take the turn."""
        ...

    def fail(self, error: ChatError) -> None:
        """The endpoint has no answer: the episode ends, and is invalid."""
        ...


class EndpointPolicy(Policy):
    """A chat endpoint that acts.

    Attributes:
        client: counts what is asked and answered (`client.usage`).
    """

    def __init__(self, name: str, rows: int = 64, **client: Any) -> None:
        """
        Args:
            name: `openai:MODEL` or `openai:MODEL@BASE_URL`.
            rows: questions in flight at once.
            **client: further arguments of `ChatClient`.

        Raises:
            ValueError: If the name is incomplete, or the endpoint refuses the key or cannot be reached.
            ModuleNotFoundError: If the openai package is not installed.
        """
        if importlib.util.find_spec("openai") is None:
            raise ModuleNotFoundError(f'{name}: openai is not installed; pip install "mrlm[llm]"')
        model, _, url = name.removeprefix(PREFIX).partition("@http")
        if not model:
            raise ValueError(f"model {name!r}: expected openai:MODEL or openai:MODEL@http://HOST/v1")
        no_tokens: Any = SimpleNamespace(tokenizer=None, stop_ids=(), system_prompt=None)
        super().__init__(None, no_tokens, name, rows=rows)
        settings = {"max_concurrency": rows, "retries": RETRIES, "deadline": DEADLINE, **client}
        self.client = ChatClient(f"http{url}" if url else None, model, **settings)
        try:
            self.client.check()
        except ChatError as error:
            raise ValueError(str(error)) from None

    @property
    def max_context(self) -> None:
        """Not known."""

    @contextmanager
    def engine(self, sampling: Sampling) -> Iterator[EndpointEngine]:
        """An engine for one run."""
        yield EndpointEngine(self.client, sampling, self.rows)


class EndpointEngine:
    """Asks the endpoint for each turn, for up to `rows` conversations at once; an `inference.types.Engine`."""

    def __init__(self, client: ChatClient, sampling: Sampling, rows: int) -> None:
        self.client, self.rows, self._has_answered = client, rows, False
        self._settings: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.top_k:
            self._settings["top_k"] = sampling.top_k  # not OpenAI's, but known to most servers
        # OpenAI's newer models know only the new name, other servers always the old one
        self._limit = "max_tokens" if client.base_url else "max_completion_tokens"

    def run(self, conversations: Iterable[Conversation]) -> None:
        """Play every conversation to its `End`; see `Engine.run`.

        Raises:
            ValueError: If a question fails and none has been answered yet: a wrong model name or parameter.
        """
        queue: Iterator[Any] = iter(conversations)
        pending: dict[Future[Any], ChatConversation] = {}
        asked: set[Future[ChatReply]] = set()
        try:
            while True:
                while len(pending) < self.rows and (conversation := next(queue, None)) is not None:
                    self._advance(conversation, pending, asked)
                if not pending:
                    return
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    conversation = pending.pop(future)
                    if future in asked:
                        asked.remove(future)
                        self._take(future, conversation)
                    self._advance(conversation, pending, asked)
        finally:
            for future in asked:
                future.cancel()

    def _advance(
        self, conversation: ChatConversation, pending: dict[Future[Any], ChatConversation], asked: set[Future[Any]]
    ) -> None:
        wish = conversation.poll()
        if isinstance(wish, Wait):
            pending[wish.ready] = conversation
        elif isinstance(wish, Feed):
            messages = chat_messages(conversation.messages, conversation.tools)
            future = self.client.submit(messages, **self._settings, **{self._limit: conversation.budget})
            pending[future] = conversation
            asked.add(future)

    def _take(self, future: Future[ChatReply], conversation: ChatConversation) -> None:
        try:
            reply = future.result()
        except ChatError as error:
            if not self._has_answered:
                raise ValueError(str(error)) from None
            conversation.fail(error)
        else:
            self._has_answered = True
            conversation.answer(reply)


def chat_messages(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Messages as any endpoint takes them: tools listed in the system prompt, and their results as a user's words.

    The environment reads calls from the text of a reply, so the endpoint's own parser of calls must not eat them.
    """
    said = [{"role": m["role"] if m["role"] != "tool" else "user", "content": m["content"]} for m in messages]
    if tools:
        listed = "Tools:\n" + "\n".join(json.dumps(tool) for tool in tools)
        if said[0]["role"] == "system":
            said[0]["content"] += f"\n\n{listed}"
        else:
            said.insert(0, {"role": "system", "content": listed})
    return said
