"""The slot engine: the same tokens as re-prefilling the history, whoever shares the batch, and nothing left behind."""

import copy
import dataclasses
import functools
import gc
import warnings
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from trl.models.utils import unwrap_model_for_generation

from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_train import tiny
from mrlm_train.inference import policy
from mrlm_train.inference.batch_engine import BatchEngine, ModelTurn
from mrlm_train.inference.kv_cache import SlotModel
from mrlm_train.inference.policy import engine_for
from mrlm_train.inference.sampling import Sampling
from mrlm_train.inference.slot_engine import SlotEngine, supports
from mrlm_train.inference.types import End, Feed, Wait
from mrlm_train.rollout.runner import Request, Rollout

torch.set_num_threads(1)
VOCABULARY = 97
STOPS = (3, 4, 5)
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}
WIDE = {"max_position_embeddings": 1024, "initializer_range": 0.2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
WINDOW = {"sliding_window": 6}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA | WIDE,
    "qwen2": LLAMA | WIDE,
    "qwen2-mixed-window": LLAMA | WIDE | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": LLAMA | WIDE | {"head_dim": 16},
    "qwen3_moe": LLAMA | WIDE | MOE,
    "mistral": LLAMA | WIDE | WINDOW,
    "mixtral": LLAMA | WIDE | {"num_local_experts": 4},
    "phi3": LLAMA | WIDE,
    "olmo2": LLAMA | WIDE,
    "smollm3": LLAMA | WIDE | {"no_rope_layers": [1, 0]},
    "gemma2": LLAMA | WIDE | WINDOW | {"head_dim": 8},
    "gemma3_text": LLAMA | WIDE | WINDOW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": LLAMA | WIDE | WINDOW | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
    | {"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": SIZES | WIDE | {"intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2},
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2, "max_position_embeddings": 1024},
    "starcoder2": LLAMA | WIDE | WINDOW,
    "granite": LLAMA | WIDE,
    "cohere": LLAMA | WIDE,
    "glm": LLAMA | WIDE | {"head_dim": 8},
    "deepseek_v3": LLAMA
    | WIDE
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    | {"num_key_value_heads": 4, "first_k_dense_replace": 1},
}


def build(name: str, attention: str | None = None, **changes: Any) -> Any:
    """A randomly initialised model of an architecture, tiny."""
    kind = name.split("-")[0]
    config = transformers.AutoConfig.for_model(kind, **(ARCHITECTURES.get(name, {}) | changes))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        kwargs = {} if attention is None else {"attn_implementation": attention}
        return transformers.AutoModelForCausalLM.from_config(config, **kwargs).eval()


class Script:
    """A conversation whose environment says prepared things, at once or from another thread."""

    def __init__(
        self,
        feeds: list[list[int]],
        budgets: list[int],
        seed: int = 0,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self.feeds, self.budgets, self.seed, self.threads = feeds, budgets, seed, threads
        self.prefix: Hashable = None
        self.context: list[int] = []
        self.turns: list[tuple[int, list[int], list[float]]] = []
        self.answer: Future[Any] | None = None

    @property
    def budget(self) -> int:
        return self.budgets[len(self.turns)]

    def poll(self) -> Feed | Wait | End:
        if len(self.turns) == len(self.feeds):
            return End()
        if self.threads is not None:
            if self.answer is None:
                self.answer = self.threads.submit(sum, [1, 2])
            if not self.answer.done():
                return Wait(self.answer)
            self.answer = None
        self.context += self.feeds[len(self.turns)]
        return Feed(list(self.feeds[len(self.turns)]))

    def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
        assert log_probs is not None and len(log_probs) == len(ids) <= self.budget
        self.turns.append((len(self.context), ids, log_probs))
        self.context += ids


def scripts(count: int, turns: int = 3, prompt: int = 20, seed: int = 0, **kwargs: Any) -> list[Script]:
    """Conversations of random prompts and observations; pairs of them share a prompt."""
    rng = np.random.default_rng(seed)
    made: list[Script] = []
    for i in range(count):
        feeds = [rng.integers(6, VOCABULARY, rng.integers(1, top)).tolist() for top in (prompt, *[12] * (turns - 1))]
        if i % 2:
            feeds[0] = list(made[-1].feeds[0])
        made.append(Script(feeds, rng.integers(1, 9, turns).tolist(), seed=i, **kwargs))
    return made


def check_against_generate(model: Any, played: list[Script]) -> None:
    """Each greedy turn is what `generate` says after the whole history; log-probs are an uncached forward's."""
    for script in played:
        for (start, ids, log_probs), budget in zip(script.turns, script.budgets, strict=True):
            history = torch.tensor([script.context[:start]])
            config = transformers.GenerationConfig(
                max_new_tokens=budget, do_sample=False, eos_token_id=list(STOPS), pad_token_id=0
            )
            expected = model.generate(history, attention_mask=torch.ones_like(history), generation_config=config)
            assert ids == expected[0, start:].tolist()
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([script.context[: start + len(ids)]]), use_cache=False).logits
            plain = logits[0, start - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(log_probs), plain, atol=1e-5, rtol=0)


NO_SDPA = {("gemma2", "sdpa"), ("gpt_oss", "sdpa")}
GREEDY = Sampling(temperature=0, max_turn_tokens=8, stop_ids=STOPS)
SAMPLED = Sampling(max_turn_tokens=8, stop_ids=STOPS, seed=7)


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, kind) for name in ARCHITECTURES for kind in ("sdpa", "eager") if (name, kind) not in NO_SDPA],
)
def test_greedy_turns_are_those_of_generate_over_the_whole_history(name: str, attention: str) -> None:
    model = build(name, attention)
    assert supports(model) is None
    played = scripts(7)
    SlotEngine(model, GREEDY, slots=3).run(played)
    assert len({token for script in played for _, ids, _ in script.turns for token in ids}) > 10
    check_against_generate(model, played)


def test_a_prompt_longer_than_a_prefill_piece_and_the_first_buffer() -> None:
    model = build("qwen3")
    played = scripts(4, prompt=10)
    long = np.random.default_rng(1).integers(6, VOCABULARY, 700).tolist()
    played[1].feeds[0], played[2].feeds[1] = long, long[:90]
    SlotEngine(model, GREEDY, slots=3).run(played)
    check_against_generate(model, played)


def test_a_context_may_fill_the_last_learned_position_while_others_are_padded_beyond() -> None:
    model = build("gpt2", n_positions=32)
    # the second turn of the first and the prompt of the third are prefilled together
    played = [Script([[9] * 20, [8, 9, 7]], [8, 1]), Script([[6] * 2], [8]), Script([list(range(6, 18))], [2])]
    SlotEngine(model, dataclasses.replace(GREEDY, stop_ids=()), slots=2).run(played)
    assert len(played[0].context) == 32
    with torch.no_grad():
        for script in played:
            for start, ids, _ in script.turns:
                logits = model(input_ids=torch.tensor([script.context[: start + len(ids)]])).logits[0]
                assert logits[start - 1 : -1].argmax(-1).tolist() == ids


def test_unused_positions_of_the_buffer_are_never_seen() -> None:
    model = build("llama")
    clean, dirty = scripts(6), scripts(6)
    SlotEngine(model, SAMPLED, slots=6).run(clean)
    # conversations of other lengths went through the same slots before
    SlotEngine(model, SAMPLED, slots=3).run([*scripts(9, prompt=40, seed=5), *dirty])
    assert [script.context for script in dirty] == [script.context for script in clean]


@functools.cache
def small_model() -> Any:
    return build("llama", num_hidden_layers=1, initializer_range=0.1)


FEEDS = st.lists(st.lists(st.integers(6, 9), min_size=1, max_size=12), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.lists(FEEDS, min_size=1, max_size=9), st.integers(1, 10), st.integers(0, 2**32), st.data())
def test_any_conversations_get_the_tokens_they_would_get_alone(
    feeds: list[list[list[int]]], slots: int, seed: int, data: st.DataObject
) -> None:
    model = small_model()
    budgets = [data.draw(st.lists(st.integers(1, 10), min_size=len(f), max_size=len(f))) for f in feeds]
    sampling = Sampling(max_turn_tokens=4, stop_ids=STOPS, seed=seed)  # budgets above it are allowed
    alone = [Script(f, b, seed=i) for i, (f, b) in enumerate(zip(feeds, budgets, strict=True))]
    together = [Script(f, b, seed=i) for i, (f, b) in enumerate(zip(feeds, budgets, strict=True))]
    for script in alone:
        SlotEngine(model, sampling, slots=1).run([script])
    order = data.draw(st.permutations(together))
    engine = SlotEngine(model, sampling, slots)
    engine.run(order)
    assert [script.context for script in together] == [script.context for script in alone]
    ours = [p for script in together for _, _, log_probs in script.turns for p in log_probs]
    theirs = [p for script in alone for _, _, log_probs in script.turns for p in log_probs]
    assert engine.sampled_tokens == len(ours)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_environments_on_threads_change_no_token() -> None:
    model = build("qwen3")
    inline = scripts(12)
    SlotEngine(model, SAMPLED, slots=5).run(inline)
    with ThreadPoolExecutor(3) as threads:
        threaded = scripts(12, threads=threads)
        SlotEngine(model, SAMPLED, slots=5).run(threaded)
    assert [script.context for script in threaded] == [script.context for script in inline]


def test_both_engines_draw_the_same_tokens() -> None:
    model = build("qwen2")
    for sampling in (SAMPLED, dataclasses.replace(SAMPLED, temperature=0.7, top_p=0.8, top_k=20)):
        ours, theirs = scripts(10), scripts(10)
        SlotEngine(model, sampling, slots=4).run(ours)
        BatchEngine(ModelTurn(model, sampling), sampling, rows=10).run(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.context == other.context
            for (_, _, log_probs), (_, _, expected) in zip(mine.turns, other.turns, strict=True):
                np.testing.assert_allclose(log_probs, expected, atol=1e-5)


class Checksum(TextEnv):
    """Rewards, and ends by, the checksum of what it hears: any change of a token shows."""

    def begin(self, options: Options) -> Opening:
        return Opening("Say something." * int(self.rng.integers(1, 4)), task_id=str(self.rng.integers(1000)))

    def respond(self, action: str) -> Reply:
        total = sum(action.encode())
        return Reply("and?" * (total % 4), {"sum": total % 7 / 7}, done=total % 3 == 0, success=total % 2 == 0)


def test_episodes_have_the_masks_budgets_and_rewards_of_the_turn_engine() -> None:
    model, tokenizer = tiny.build(0, hidden_size=32, num_layers=2)
    sampling = Sampling(max_turn_tokens=6, max_episode_tokens=50, max_turns=4, seed=3, stop_ids=tuple(range(40)))
    requests = [Request(0, seed, draw) for seed in range(6) for draw in range(4)]
    played = {}
    for engine in ("turn", "slot"):
        acting = policy.make(model, tokenizer, engine=engine, rows=7)
        with Rollout(acting, lambda: Checksum(max_turns=9), sampling) as rollout:
            played[engine] = rollout.run(requests)
    assert {e.stop_reason for e in played["slot"]} >= {"success", "failure", "turn_limit", "token_limit"}
    for mine, other in zip(played["slot"], played["turn"], strict=True):
        assert mine.logprobs is not None and other.logprobs is not None
        for ours, theirs in zip(mine.logprobs, other.logprobs, strict=True):
            assert ours == theirs or (ours and theirs and abs(ours - theirs) < 1e-5)
        assert dataclasses.replace(mine, logprobs=None) == dataclasses.replace(other, logprobs=None)


class Waiting(Script):
    """Begins when `released` is done; releases `releases` when it has spoken."""

    def __init__(self, released: Future[Any] | None, releases: Future[None] | None) -> None:
        super().__init__([[7, 8, 9]], [3])
        self.released, self.releases = released, releases

    def poll(self) -> Feed | Wait | End:
        return super().poll() if self.released is None or self.released.done() else Wait(self.released)

    def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
        super().submit(ids, log_probs)
        if self.releases is not None:
            self.releases.set_result(None)


def test_a_waiting_conversation_holds_up_no_other() -> None:
    release: Future[None] = Future()
    held, busy = Waiting(release, None), Waiting(None, release)
    SlotEngine(build("llama"), GREEDY, slots=2).run([held, busy])  # would never end
    assert len(held.turns) == len(busy.turns) == 1


def test_where_all_wait_the_first_answer_goes_on() -> None:
    class Asking(Waiting):
        def poll(self) -> Feed | Wait | End:
            if self.released is None:
                self.released = threads.submit(sum, [1, 2])
                return Wait(self.released)
            return super().poll()

    release: Future[None] = Future()
    with ThreadPoolExecutor(1) as threads:
        held, asking = Waiting(release, None), Asking(None, release)
        SlotEngine(build("llama"), GREEDY, slots=2).run([held, asking])  # would never end
    assert len(held.turns) == len(asking.turns) == 1


def test_decode_leaves_out_rows_that_have_ended() -> None:
    model, batches = build("llama"), list[int]()
    model.register_forward_pre_hook(lambda _, __, inputs: batches.append(len(inputs["input_ids"])), with_kwargs=True)
    played = [*(Script([[7 + i, 8]], [2]) for i in range(7)), Script([[9, 7]], [20])]
    SlotEngine(model, dataclasses.replace(GREEDY, stop_ids=(), max_turn_tokens=20), slots=8).run(played)
    assert batches == [8, 8, 8, *[1] * 18]  # a prefill, two tokens of all, the rest of the last


def test_a_group_computes_its_prompt_once() -> None:
    prompts = np.random.default_rng(0).integers(6, VOCABULARY, (3, 40)).tolist()
    engine = SlotEngine(build("llama"), SAMPLED, slots=24)
    engine.run([Script([list(prompt)], [4], seed=i) for prompt in prompts for i in range(8)])
    assert engine.prefilled_tokens == 3 * 39 and engine.copied_tokens == 3 * 7 * 39


def test_a_common_beginning_is_computed_once_and_what_the_slot_held_is_used_again() -> None:
    rng = np.random.default_rng(0)
    system = rng.integers(6, VOCABULARY, 50).tolist()
    prompts = [[*system, 10 + i, *rng.integers(6, VOCABULARY, 9).tolist()] for i in range(6)]
    engine = SlotEngine(build("llama"), SAMPLED, slots=2)
    engine.run([Script([prompt], [4]) for prompt in prompts])
    assert engine.prefilled_tokens == 50 + 6 * 9
    assert engine.copied_tokens == 50  # the second slot, once; later conversations find it in their own


def test_a_run_leaves_no_tensor_behind() -> None:
    model = build("llama")
    played = scripts(6)

    def alive() -> int:
        return sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))

    SlotEngine(model, SAMPLED, slots=4).run(scripts(6))
    gc.collect()
    before = alive()
    gc.disable()  # freed at once, not at the collector's leisure
    try:
        SlotEngine(model, SAMPLED, slots=4).run(played)
        assert alive() == before
    finally:
        gc.enable()


def test_train_mode_comes_back_even_after_an_error() -> None:
    class Broken(Script):
        def submit(self, ids: list[int], log_probs: list[float] | None) -> None:
            raise RuntimeError("no")

    model = build("llama").train()
    SlotEngine(model, SAMPLED).run(scripts(2))
    assert model.training
    with pytest.raises(RuntimeError, match="no"):
        SlotEngine(model, SAMPLED).run([Broken([[7]], [2])])
    assert model.training and torch.is_grad_enabled()


def test_dropout_and_gradient_checkpointing_change_nothing() -> None:
    model = build("llama", attention_dropout=0.5)
    plain, trained = scripts(6), scripts(6)
    SlotEngine(model, SAMPLED).run(plain)
    model.train()
    model.activation_checkpointing_enable()
    SlotEngine(model, SAMPLED).run(trained)
    assert [script.turns for script in trained] == [script.turns for script in plain]


def test_a_lora_model_decodes_with_its_adapter() -> None:
    model = build("qwen3")
    plain = scripts(6)
    SlotEngine(model, GREEDY).run(plain)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    played = scripts(6)
    assert supports(adapted) is None
    SlotEngine(adapted, GREEDY, slots=4).run(played)
    assert [script.turns for script in played] != [script.turns for script in plain]
    check_against_generate(adapted, played)


def test_it_runs_in_the_unwrapped_model_of_an_accelerator() -> None:
    model = build("qwen3")
    plain, played = scripts(6), scripts(6)
    SlotEngine(model, GREEDY).run(plain)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model).train()
    with unwrap_model_for_generation(prepared, accelerator) as unwrapped:
        SlotEngine(unwrapped, GREEDY).run(played)
    assert [script.turns for script in played] == [script.turns for script in plain]


def test_a_cache_filled_in_a_run_is_not_met_by_autograd() -> None:
    model = build("llama").train()
    SlotEngine(model, SAMPLED).run(scripts(2))
    model(input_ids=torch.tensor([[7, 8]]), labels=torch.tensor([[7, 8]])).loss.backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_log_probs_are_near_those_of_a_forward_pass(how: str) -> None:
    model = build("qwen3", initializer_range=0.1)
    if how == "weights":
        model = model.to(torch.bfloat16)
    played = scripts(6)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        assert supports(model) is None
        SlotEngine(model, SAMPLED, slots=4).run(played)
        for script in played:
            for start, ids, log_probs in script.turns:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([script.context[: start + len(ids)]])).logits.float()
                plain = logits[0, start - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
                torch.testing.assert_close(torch.tensor(log_probs), plain, atol=0.1, rtol=0)


def kernel(module: Any, inputs: Any, output: Any) -> None:
    """Rounds one row unlike two, as 16-bit kernels do."""
    output.logits = output.logits * (1.01 if len(output.logits) == 1 else 1.0)


@pytest.mark.parametrize(("how", "allowed"), [("float32", False), ("weights", True), ("autocast", True)])
def test_the_tolerance_of_the_trial_follows_the_type_that_computes(how: str, allowed: bool) -> None:
    model = build("qwen3")
    if how == "weights":
        model = model.to(torch.bfloat16)

    model.register_forward_hook(kernel)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        assert (supports(model) is None) is allowed


def test_a_verdict_under_autocast_is_not_the_one_without() -> None:
    model = build("qwen3")
    model.register_forward_hook(kernel)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(engine_for("auto", model, SAMPLED), SlotEngine)
    with pytest.warns(UserWarning, match=r"slot cache are off by 1\.0%"):
        assert isinstance(engine_for("auto", model, SAMPLED), BatchEngine)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_cache_holds_keys_and_values_in_the_type_that_computes(attention: str) -> None:
    model = build("qwen3", attention)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        slots = SlotModel(model, 2)
        for place in (0, 1):
            slots.forward(np.arange(2), np.full((2, 1), 7), np.full(2, place), np.full(2, place))
    assert {layer.keys.dtype for layer in slots.cache.layers} == {torch.bfloat16}  # type: ignore[union-attr]
    assert {layer.values.dtype for layer in slots.cache.layers} == {torch.bfloat16}  # type: ignore[union-attr]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1}, "linear_attention"),
    "bloom": ({"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 4}, "slot cache"),
    "gpt_neo": (
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4}
        | {"attention_types": [[["global", "local"], 1]], "initializer_range": 0.2},
        "logits through a slot cache are off",
    ),
    "qwen3_next": (
        LLAMA | MOE | {"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 8},
        "linear_attention",
    ),
    "llama4_text": (
        LLAMA | {"layer_types": ["chunked_attention", "full_attention"], "intermediate_size_mlp": 48, "head_dim": 8},
        "chunked_attention",
    ),
    "llama": (LLAMA | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_run_it_refuses_with_a_reason(name: str) -> None:
    config, reason = REFUSED[name]
    assert reason in str(supports(build(f"{name}-refused", **config)))


def test_attention_that_takes_no_mask_and_virtual_tokens_are_refused() -> None:
    model = build("llama")
    prompted = get_peft_model(copy.deepcopy(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "virtual tokens" in str(supports(prompted))
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in str(supports(model))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: attention 'flash_attention_2'.*use engine 'turn'"):
        SlotEngine(model, SAMPLED)


def test_positions_that_scale_with_length_are_fine_below_it() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    model = build("llama", rope_parameters=rope)
    assert supports(model, 64) is None and "dynamic" in str(supports(model, 65))


def test_auto_takes_it_and_falls_back_with_one_warning() -> None:
    assert isinstance(engine_for("auto", build("llama"), SAMPLED), SlotEngine)
    bloom = build("bloom-refused", **REFUSED["bloom"][0])
    with pytest.warns(UserWarning, match="slower batch engine: its forward"):
        assert isinstance(engine_for("auto", bloom, SAMPLED), BatchEngine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(engine_for("auto", bloom, SAMPLED), BatchEngine)
    with pytest.raises(ValueError, match=r"the slot engine cannot run BloomForCausalLM: .*use engine 'turn'"):
        engine_for("slot", bloom, SAMPLED)
