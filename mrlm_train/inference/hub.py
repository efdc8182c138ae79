"""Whether a model is where its name says, before anything slow is imported or retried."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASK_SECONDS = 5.0  # Transformers asks an unreachable Hub twelve times, for a minute


@functools.cache
def check_exists(name: str) -> None:
    """Refuse a name that is not a folder here, not in the Hub's cache and not on the Hub, which is asked once.

    Args:
        name: A folder, a Hub name (`owner/name`), `tiny`, or an endpoint (`openai:…`), which is somewhere else.

    Raises:
        ValueError: In one line.
    """
    if name == "tiny" or name.startswith("openai:") or (name and Path(name).is_dir()):
        return
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"model {name!r}: no such folder; give a folder with config.json, or a hub name")
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    for file in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        if isinstance(try_to_load_from_cache(name, file), str):
            return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=ASK_SECONDS)
    except errors.EntryNotFoundError:  # the repository is there: it may hold an adapter
        return
    except errors.GatedRepoError:
        raise ValueError(
            f"model {name!r}: access is restricted; ask for it on its page, then `hf auth login`"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ValueError(f"model {name!r}: neither a folder here nor a model on the Hub (or private)") from None
    except Exception as error:  # each network stack and proxy has its own
        said = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(
            f"model {name!r}: not a folder here, not cached, and the Hub does not answer ({said})"
        ) from None


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Within it, a library that cannot load `what` says so in one line.

    Raises:
        ValueError: With the first line of the library's message.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{what}: {lines[0]}") from error
