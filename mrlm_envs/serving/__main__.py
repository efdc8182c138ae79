"""`python -m mrlm_envs.serving` is `mrlm serve`."""

import sys

from mrlm_envs.serving.cli import main

sys.exit(main())
