"""The `bucketrank` command line: one module a command; each parses, calls the package and prints.

What is heavy (torch, detectron2, bucketed_ranking) is imported inside the commands, so that help
and shell completion answer at once.
"""
