"""`ChatClient`: one client for chat endpoints that speak OpenAI's protocol.

vLLM, `transformers serve`, llama.cpp and every provider speak it. Judges, opponents and simulated users share this
client, and so does a policy that lives behind an endpoint. It is asynchronous inside, on one background event loop
per process, and may be called from synchronous code in any thread, or awaited on any loop:

    client = ChatClient("http://127.0.0.1:8000/v1", "my-model", max_concurrency=32)
    client.ask([{"role": "user", "content": "Hello"}]).text
    client.ask_json(messages, schema)            # a dict that fits the JSON schema's required keys and types
    await client.chat(messages)                  # the same, awaited

A call that cannot be answered raises `ChatError` in one line; inside an environment that is an `EnvFault`, so the
episode ends as truncated and never as the agent's loss. The openai package is imported with the first call
(`pip install "mrlm[llm]"`).
"""

import asyncio
import json
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from mrlm_envs.core import EnvFault

Message = Mapping[str, Any]
T = TypeVar("T")

_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
}


class ChatError(EnvFault):
    """The endpoint failed: unreachable, out of time, refused, or an answer that does not fit what was asked."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One answer.

    Attributes:
        text: What the model said.
        finish_reason: "stop", "length" or what else the endpoint reports.
        prompt_tokens: Tokens read, as the endpoint counts them (0 when it does not say).
        completion_tokens: Tokens written.
        cost: In the unit of the client's `prices`.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost: float


@dataclass(slots=True)
class Usage:
    """Running totals of a client; `failures` are calls that ended in `ChatError`."""

    calls: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class ChatClient:
    """A chat endpoint with a concurrency limit, retries, a deadline and a count of what it costs.

    Args:
        base_url: For example `http://127.0.0.1:8000/v1`; the openai package's default (or `OPENAI_BASE_URL`) if None.
        model: The model's name at that endpoint.
        api_key_env: The environment variable that holds the key; local servers need none. The key itself is never an
            argument, because arguments of environments travel and are written to logs.
        max_concurrency: Calls in flight at once; further ones wait, without using up their deadline.
        timeout: Seconds for one attempt.
        deadline: Seconds for one question, retries included (`ask_json` may put several).
        retries: Further attempts after a connection error, a time-out, HTTP 408, 409, 429 or 5xx (with exponential
            pauses, and `Retry-After` obeyed).
        prices: Cost of a million prompt tokens and a million completion tokens, in any unit.
        sampling: Parameters of every request, such as `{"temperature": 0, "max_tokens": 200}`. Names that are not
            OpenAI's (`top_k`, `chat_template_kwargs`) are sent along as they are.

    Raises:
        ValueError: On a limit that is not positive.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str = "default",
        *,
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 16,
        timeout: float = 60.0,
        deadline: float = 180.0,
        retries: int = 3,
        prices: Sequence[float] = (0.0, 0.0),
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("max_concurrency", max_concurrency), ("timeout", timeout), ("deadline", deadline)):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        if retries < 0:
            raise ValueError(f"retries must be at least 0, got {retries!r}")
        if len(prices) != 2:
            raise ValueError(f"prices must be (per million prompt tokens, per million completion tokens), got {prices}")
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.max_concurrency, self.timeout, self.deadline, self.retries = max_concurrency, timeout, deadline, retries
        self.prices = (float(prices[0]), float(prices[1]))
        self.sampling = dict(sampling or {})
        self.usage = Usage()
        self._pid: int | None = None
        self._client: Any = None
        self._slots: asyncio.Semaphore

    def __repr__(self) -> str:
        return f"ChatClient({self.base_url!r}, {self.model!r})"

    async def chat(self, messages: Sequence[Message], **sampling: Any) -> ChatReply:
        """One answer to a conversation; may be awaited on any event loop.

        Args:
            messages: OpenAI chat messages.
            **sampling: Parameters of this request, over those of the client.

        Raises:
            ChatError: When no answer came.
        """
        return await asyncio.wrap_future(_spawn(self._chat(messages, sampling)))

    def ask(self, messages: Sequence[Message], **sampling: Any) -> ChatReply:
        """`chat` for synchronous code, from any thread (not from a coroutine: there, await `chat`)."""
        return run(self._chat(messages, sampling))

    async def chat_json(
        self, messages: Sequence[Message], schema: Mapping[str, Any], *, attempts: int = 3, **sampling: Any
    ) -> dict[str, Any]:
        """An answer as a JSON object; see `ask_json`."""
        return await asyncio.wrap_future(_spawn(self._chat_json(messages, schema, attempts, sampling)))

    def ask_json(
        self, messages: Sequence[Message], schema: Mapping[str, Any], *, attempts: int = 3, **sampling: Any
    ) -> dict[str, Any]:
        """An answer as a JSON object.

        The schema goes to the endpoint as `response_format`; an endpoint that refuses that is asked without it. The
        answer is checked here all the same (objects with `required` keys, types, `minimum`, `maximum`, `enum`), and
        a misfit is asked again with the reason.

        Args:
            messages: OpenAI chat messages; they should say what the keys mean.
            schema: A JSON schema of type "object".
            attempts: How often to ask before giving up.
            **sampling: Parameters of this request.

        Raises:
            ChatError: When no answer came, or none that fits.
        """
        return run(self._chat_json(messages, schema, attempts, sampling))

    async def _chat(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> ChatReply:
        import openai

        client = self._connect()
        known, extra = _split_parameters({**self.sampling, **sampling})
        async with self._slots:
            self.usage.calls += 1
            try:
                async with asyncio.timeout(self.deadline):
                    answer = await client.chat.completions.create(
                        model=self.model, messages=[dict(message) for message in messages], extra_body=extra, **known
                    )
                choice = answer.choices[0]
                text, reason = choice.message.content or "", str(choice.finish_reason)
            except TimeoutError:
                raise self._failure(f"no answer within the deadline of {self.deadline:g} s") from None
            except openai.BadRequestError as error:
                self.usage.failures += 1
                raise _Refused(f"{self._where()}: {_line(error)}") from None
            except (openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError) as error:
                # The latter four: what openai or we stumble over when the body is not a chat completion.
                raise self._failure(_line(error)) from None
        used = answer.usage
        read, written = (used.prompt_tokens or 0, used.completion_tokens or 0) if used else (0, 0)
        cost = (read * self.prices[0] + written * self.prices[1]) / 1e6
        self.usage.prompt_tokens += read
        self.usage.completion_tokens += written
        self.usage.cost += cost
        return ChatReply(text, reason, read, written, cost)

    async def _chat_json(
        self, messages: Sequence[Message], schema: Mapping[str, Any], attempts: int, sampling: Mapping[str, Any]
    ) -> dict[str, Any]:
        messages = list(messages)
        shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}
        structured: dict[str, Any] = {"response_format": shape}
        problem = ""
        for _ in range(attempts):
            try:
                reply = await self._chat(messages, {**sampling, **structured})
            except _Refused:
                if not structured:
                    raise
                structured = {}  # an endpoint without structured output: ask in words alone
                reply = await self._chat(messages, sampling)
            value = first_object(reply.text)
            problem = "no JSON object in the answer" if value is None else misfit(value, schema)
            if value is not None and not problem:
                return value
            messages += [
                {"role": "assistant", "content": reply.text[:2_000]},
                {"role": "user", "content": f"That does not fit: {problem}. Reply with the JSON object only."},
            ]
        raise self._failure(f"{problem} (asked {attempts} times)")

    def _connect(self) -> Any:
        if self._pid != os.getpid():  # a forked child must not share sockets with its parent
            import openai

            self._pid = os.getpid()
            self._slots = asyncio.Semaphore(self.max_concurrency)
            self._client = openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=os.environ.get(self.api_key_env) or "none",
                timeout=self.timeout,
                max_retries=self.retries,
            )
        return self._client

    def _where(self) -> str:
        return f"chat endpoint {self.base_url or 'default'}, model {self.model!r}"

    def _failure(self, problem: str) -> ChatError:
        self.usage.failures += 1
        return ChatError(f"{self._where()}: {problem}")


class _Refused(ChatError):
    """The endpoint understood the request and refused it (HTTP 400)."""


def shared_client(config: Mapping[str, Any]) -> ChatClient:
    """The client of a JSON configuration (`ChatClient`'s arguments); equal configurations share one.

    So the members of a vector or a thread pool keep to one concurrency limit and one count of tokens.

    Raises:
        ValueError: If `config` is not a mapping of `ChatClient`'s arguments.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"llm: expected a mapping such as {{'base_url': …, 'model': …}}, got {config!r}")
    return _client_of(json.dumps(dict(config), sort_keys=True))


@lru_cache(maxsize=64)
def _client_of(config: str) -> ChatClient:
    try:
        return ChatClient(**json.loads(config))
    except TypeError as error:
        raise ValueError(f"llm: {str(error).replace('ChatClient.__init__() ', '')} (in {config})") from None


class _Loop:
    """The background event loop of this process."""

    lock = threading.Lock()
    pid: int | None = None
    loop: asyncio.AbstractEventLoop


def _spawn(work: Coroutine[Any, Any, T]) -> Any:
    with _Loop.lock:
        if _Loop.pid != os.getpid():
            _Loop.loop = asyncio.new_event_loop()
            threading.Thread(target=_Loop.loop.run_forever, name="mrlm-chat", daemon=True).start()
            _Loop.pid = os.getpid()
    return asyncio.run_coroutine_threadsafe(work, _Loop.loop)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits `ChatClient` calls on the background loop, from synchronous code in any thread."""
    future = _spawn(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # a Ctrl-C here must not leave the call running
        raise


def _split_parameters(sampling: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """OpenAI's parameters, and those of other servers (for `extra_body`)."""
    known = _openai_parameters()
    ours = {name: value for name, value in sampling.items() if name in known}
    return ours, {name: value for name, value in sampling.items() if name not in known}


@lru_cache(maxsize=1)
def _openai_parameters() -> frozenset[str]:
    import inspect

    from openai.resources.chat.completions import AsyncCompletions

    return frozenset(inspect.signature(AsyncCompletions.create).parameters) - {"self", "model", "messages"}


def first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a reply, past code fences, thinking and small talk; None when there is none."""
    text = text.rpartition("</think>")[2]
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _ in range(32):  # a reply of nothing but braces must not cost a quadratic scan
        if start < 0:
            return None
        try:
            value, _end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        return value
    return None


def misfit(value: Any, schema: Mapping[str, Any], path: str = "answer") -> str:
    """Why a JSON value does not fit a schema, in a few words; "" when it fits.

    Checks `type`, `required`, `properties`, `items`, `enum`, `minimum` and `maximum`.
    """
    expected = schema.get("type")
    if expected is not None and (
        not isinstance(value, _JSON_TYPES[expected]) or (isinstance(value, bool) and expected != "boolean")
    ):
        return f"{path} should be of type {expected}, got {value!r:.60}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{path} should be one of {schema['enum']}, got {value!r:.60}"
    if "minimum" in schema and not value >= schema["minimum"]:
        return f"{path} should be at least {schema['minimum']}, got {value!r:.60}"
    if "maximum" in schema and not value <= schema["maximum"]:
        return f"{path} should be at most {schema['maximum']}, got {value!r:.60}"
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                return f"{path} lacks {name!r}"
        problems = (
            misfit(value[name], inner, f"{path}.{name}")
            for name, inner in schema.get("properties", {}).items()
            if name in value
        )
        return next(filter(None, problems), "")
    if isinstance(value, list) and "items" in schema:
        return next(filter(None, (misfit(item, schema["items"], f"{path}[{i}]") for i, item in enumerate(value))), "")
    return ""


def _line(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    text = f"{error}" if cause is None else f"{error} ({cause})"
    return " ".join(text.split())[:300] or type(error).__name__
