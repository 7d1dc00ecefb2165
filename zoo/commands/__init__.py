"""One module per subcommand of `zoo`, imported only when it is chosen.

Each has `add_arguments(parser)` and `run(args) -> exit code`; the first line of its docstring is its help text.
"""
