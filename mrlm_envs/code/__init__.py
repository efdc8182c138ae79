"""The code environment: problems, their judge, and the Gymnasium class."""
