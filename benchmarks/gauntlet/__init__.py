"""The gauntlet: one public set of honest replies, wrong replies and hacks, tried on every grader alike."""
