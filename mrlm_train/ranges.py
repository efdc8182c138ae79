"""Ranges of settings whose own class finds a senseless value late, or not at all: for YAML and for Python."""

from collections.abc import Mapping
from typing import Any

# Setting to its least value.
LEAST = {
    **dict.fromkeys(("learning_rate", "value_learning_rate", "weight_decay"), 0),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("max_completion_length", "num_generations"), 1),
}


def refuse_senseless(cls: type[Any], settings: Mapping[str, Any]) -> None:
    """Refuse a setting below its least value.

    Args:
        cls: The config class that is given the settings.
        settings: Name to value.

    Raises:
        ValueError: In one line that names the setting, its least value and what was given.
    """
    for name, least in LEAST.items():
        value = settings.get(name)
        if isinstance(value, int | float) and not value >= least:  # NaN is below it, too
            raise ValueError(f"{cls.__name__}: {name} must be at least {least}, got {value}")
