"""The built-in toy policy: a Qwen3-style model of under a million parameters that needs no download.

It is an ordinary Hugging Face model and tokenizer (`save_pretrained`, `AutoModelForCausalLM`, `AutoTokenizer`), so
every trainer, `mrlm eval` and the tests treat it as any other policy. Text is one token a byte, which makes arithmetic
easy to learn and lets any Unicode string round-trip exactly; a few strings that every conversation repeats are one
token each.
"""

import atexit
import functools
import shutil
import tempfile

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END_OF_TURN = "<|im_end|>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = (
    PADDING,
    END_OF_TURN,
    "<|im_start|>",
    *(f"<|im_start|>{role}\n" for role in ("system", "user", "assistant", "tool")),
)
SHORTCUTS = ("\\boxed{", "What is ")

# ChatML. Every message is rendered by itself, so a longer conversation only ever appends to a shorter one.
CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages and messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- 'Call a tool as <tool_call>{"name": NAME, "arguments": {...}}</tool_call>. Tools:' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{{- '<tool_call>' + ({'name': function.name, 'arguments': function.arguments} | tojson) + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the byte tokenizer with its ChatML template: `decode(encode(text)) == text` for any Unicode text."""
    # GPT-2's byte alphabet without a merge: printable ASCII is a token a character, all else a token a byte.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in SHORTCUTS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build(
    seed: int = 0,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    max_position_embeddings: int = 4096,
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Make the toy policy: fp32 on the CPU, untrained, the same weights for the same arguments.

    Args:
        seed: Seed of the weights. The global random state is left as it was.
        hidden_size: Width of the model; a multiple of `2 * num_heads`.
        num_layers: Number of transformer blocks.
        num_heads: Number of attention heads (and of key-value heads).
        max_position_embeddings: Longest context in tokens.

    Returns:
        The model (0.85 M parameters as it stands, in eval mode) and its tokenizer.
    """
    if hidden_size % (2 * num_heads):
        raise ValueError(f"hidden_size must be a multiple of 2 * num_heads, got {hidden_size} with {num_heads} heads")
    tokenizer = build_tokenizer()
    vocab = tokenizer.get_vocab()
    config = Qwen3Config(
        vocab_size=len(vocab),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=3 * hidden_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        pad_token_id=vocab[PADDING],
        eos_token_id=vocab[END_OF_TURN],
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would also reseed the GPUs
        model = Qwen3ForCausalLM(config).float().eval()
    return model, tokenizer


@functools.cache
def saved() -> str:
    """The toy policy of seed 0 as a model folder, which lasts as long as the process: what the name `tiny` means."""
    folder = tempfile.mkdtemp(prefix="mrlm-tiny-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model, tokenizer = build()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
