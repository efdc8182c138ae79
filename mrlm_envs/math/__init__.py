"""Mathematics: problems, their generators, and a grader that cannot be hacked or hung."""

from mrlm_envs.math.verify import grade

__all__ = ["grade"]
