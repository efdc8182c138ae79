"""`ChatClient`: one client for chat endpoints that speak OpenAI's protocol.

vLLM, `transformers serve`, llama.cpp and every provider speak it. Judges, opponents and simulated users share this
client, and so does a policy that lives behind an endpoint. It is asynchronous inside, on one background event loop
per process, and may be called from synchronous code in any thread, or awaited on any loop:

    client = ChatClient("http://127.0.0.1:8000/v1", "my-model", max_concurrency=32)
    client.ask([{"role": "user", "content": "Hello"}]).text
    client.ask_json(messages, schema)            # a dict that fits the JSON schema's required keys and types
    await client.chat(messages)                  # the same, awaited

A call that cannot be answered raises `ChatError` in one line; inside an environment that is an `EnvFault`, so the
episode ends truncated, and the agent does not lose it. The openai package is imported with the first call
(`pip install "mrlm[llm]"`).
"""

import asyncio
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mrlm_envs.background import run, spawn
from mrlm_envs.core import EnvFault

Message = Mapping[str, Any]

_MAX_STARTS = 64  # opening braces tried for the start of the object that carries the nonce
_CONTROL = re.compile(r"<(?=[^\s\d=])|\[(?=/?[A-Z_]{3,}\])")  # `<|im_end|>`, `<s>`, `<<SYS>>`, `[INST]` …
_ESCAPES = {"<": "\\u003c", "[": "\\u005b"}


class ChatError(EnvFault):
    """The endpoint failed: unreachable, out of time, or no chat completion."""


class Unanswered(ChatError):
    """The endpoint works but does not answer this question: HTTP 400, or JSON that does not fit, however often asked.

    The policy's words in the question can cause that, so an environment asks again without them; only if that fails,
    too, is it a fault.
    """


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
        return await asyncio.wrap_future(spawn(self._chat(messages, sampling)))

    def ask(self, messages: Sequence[Message], **sampling: Any) -> ChatReply:
        """`chat` for synchronous code, from any thread (not from a coroutine: there, await `chat`)."""
        return run(self._chat(messages, sampling))

    def submit(self, messages: Sequence[Message], **sampling: Any) -> Future[ChatReply]:
        """`chat` as a future, for whoever keeps many questions in flight from one thread."""
        return spawn(self._chat(messages, sampling))

    def check(self) -> None:
        """Ask for the list of models, once, so that a wrong address or key is known before any work is done.

        An endpoint that has no such list passes.

        Raises:
            ChatError: If nobody answers, or the key is refused.
        """
        run(self._check())

    async def _check(self) -> None:
        import openai

        try:
            await self._connect().with_options(timeout=min(self.timeout, 10.0), max_retries=0).models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._failure(f"{_line(error)} (the key is read from {self.api_key_env})") from None
        except openai.APIConnectionError as error:
            raise self._failure(_line(error)) from None
        except (openai.OpenAIError, ValueError, TypeError):
            pass  # it has another notion of this list, or none

    async def chat_json(
        self, messages: Sequence[Message], schema: Mapping[str, Any], *, attempts: int = 3, **sampling: Any
    ) -> dict[str, Any]:
        """An answer as a JSON object; see `ask_json`."""
        return await asyncio.wrap_future(spawn(self._chat_json(messages, schema, attempts, sampling)))

    def ask_json(
        self, messages: Sequence[Message], schema: Mapping[str, Any], *, attempts: int = 3, **sampling: Any
    ) -> dict[str, Any]:
        """An answer as a JSON object.

        The conversation usually quotes what a policy wrote, and a model may repeat it, so the answer is not just any
        object in the reply: a nonce is drawn for each question, the model is told to give it as the first and the last
        key, and only the last object that carries both counts: a quotation that it forgot to escape can neither open
        nor close an object of its own. The schema goes to the endpoint as `response_format`; an endpoint
        that refuses it is asked in words alone. The object is checked against the schema here in either case, and
        after a misfit the question is repeated with the reason.

        Args:
            messages: OpenAI chat messages; they should say what the keys mean, and quote others by `quoted`.
            schema: A JSON schema of type "object".
            attempts: How often to ask before giving up.
            **sampling: Parameters of this request.

        Returns:
            The object without its nonce.

        Raises:
            ChatError: When no answer came, or none that fits.
        """
        return run(self._chat_json(messages, schema, attempts, sampling))

    async def _chat(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> ChatReply:
        import openai

        client = self._connect()
        async with self._slots:
            self.usage.calls += 1
            try:
                async with asyncio.timeout(self.deadline):
                    answer = await client.chat.completions.create(
                        model=self.model,
                        messages=[dict(message) for message in messages],
                        extra_body={**self.sampling, **sampling},  # as it is: other servers' names are not openai's
                    )
                text, reason, read, written = _completion(answer)
            except TimeoutError:
                raise self._failure(f"no answer within the deadline of {self.deadline:g} s") from None
            except openai.BadRequestError as error:
                self.usage.failures += 1
                raise Unanswered(f"{self._where()}: {_line(error)}") from None
            except openai.OpenAIError as error:
                raise self._failure(_line(error)) from None
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise self._failure(f"the body is not a chat completion: {_line(error)}") from None
        cost = (read * self.prices[0] + written * self.prices[1]) / 1e6
        self.usage.prompt_tokens += read
        self.usage.completion_tokens += written
        self.usage.cost += cost
        return ChatReply(text, reason, read, written, cost)

    async def _chat_json(
        self, messages: Sequence[Message], schema: Mapping[str, Any], attempts: int, sampling: Mapping[str, Any]
    ) -> dict[str, Any]:
        from jsonschema import Draft202012Validator

        nonce = secrets.token_hex(4)
        key = {"type": "string"}  # not its value: the same schema each time, which endpoints compile once
        properties = {"nonce": key, **schema.get("properties", {}), "end_nonce": key}
        schema = {**schema, "properties": properties, "required": ["nonce", *schema.get("required", ()), "end_nonce"]}
        shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        structured: dict[str, Any] = {"response_format": shape}
        ask = (
            'Reply with one JSON object and nothing else. Its first key is "nonce" and its last key is "end_nonce", '
            f'both with the value "{nonce}".'
        )
        messages = [*messages, {"role": "user", "content": ask}]
        if len(messages) > 1 and messages[-2]["role"] == "user":  # many chat templates refuse two in a row
            messages[-2:] = [{"role": "user", "content": f"{messages[-2]['content']}\n\n{ask}"}]
        problem = ""
        for _ in range(attempts):
            try:
                reply = await self._chat(messages, {**sampling, **structured})
            except Unanswered:
                if not structured:
                    raise
                structured = {}  # an endpoint without structured output
                reply = await self._chat(messages, sampling)
            value = object_with(reply.text, nonce)
            if value is None:
                problem = f'no JSON object with "nonce": "{nonce}" in the answer'
            elif value.get("end_nonce") != nonce:
                problem = f'no "end_nonce": "{nonce}" at the end of the object'
            elif error := next(Draft202012Validator(schema).iter_errors(value), None):
                problem = f"{error.json_path}: {error.message:.200}"
            else:
                return {name: part for name, part in value.items() if name not in ("nonce", "end_nonce")}
            messages += [
                {"role": "assistant", "content": reply.text[:2_000]},
                {"role": "user", "content": f"That does not fit: {problem}. {ask}"},
            ]
        self.usage.failures += 1
        raise Unanswered(f"{self._where()}: {problem} (asked {attempts} times)")

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


def _completion(answer: Any) -> tuple[str, str, int, int]:
    """The text, the finish reason and both token counts of a response body, which openai does not validate.

    Raises:
        TypeError: If the text or a count has another type.
        AttributeError, LookupError: If a part is missing.
    """
    choice, used = answer.choices[0], answer.usage
    text = "" if choice.message.content is None else choice.message.content
    counts = [] if used is None else [used.prompt_tokens or 0, used.completion_tokens or 0]
    if not isinstance(text, str):
        raise TypeError(f"the message's content is not text: {text!r:.100}")
    if any(type(count) is not int or count < 0 for count in counts):
        raise TypeError(f"the usage holds something other than counts of tokens: {counts!r:.100}")
    read, written = counts or (0, 0)
    return text, str(choice.finish_reason), read, written


def object_with(text: str, nonce: str) -> dict[str, Any] | None:
    """The last JSON object in a reply whose key "nonce" has this value, None when there is none.

    The whole reply is read, thoughts included: a quoted `<think>` or `</think>` must not hide the object.
    """
    start = text.rfind(nonce)
    for _ in range(_MAX_STARTS):
        start = text.rfind("{", 0, max(0, start))
        if start < 0:
            break
        try:
            value, _end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if value.get("nonce") == nonce:
            return value
    return None


def _strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A quotation that the model forgot to escape can smuggle a second `"reached": true` into its object.
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key appears twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_strict_object, parse_constant=_no_constant)


def closed_object(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object with exactly these keys, for `ChatClient.ask_json`."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def quoted(value: Any) -> str:
    r"""JSON in a code fence, to quote in a prompt what a policy wrote.

    A text in it can neither end its string or the fence nor spell a special token of a chat template: newlines and
    quotes are escaped as in any JSON, and so are backticks, `<` and the bracket of `[INST]`.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False)
    escaped = _CONTROL.sub(lambda match: _ESCAPES[match[0]], text).replace("`", "\\u0060")
    return f"```json\n{escaped}\n```"


def sayable(text: str) -> str:
    """A policy's words as the content of a chat message, in which `<|im_end|>` becomes `< |im_end|>`, plain text."""
    return _CONTROL.sub(lambda match: f"{match[0]} ", text)


def _line(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    text = f"{error}" if cause is None else f"{error} ({cause})"
    return " ".join(text.split())[:300] or type(error).__name__
