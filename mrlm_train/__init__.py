"""Thin trainers on TRL and Accelerate for any text Gymnasium environment."""
