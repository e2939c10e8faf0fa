"""One module for each command of the command line: options in, one call downwards, output and exit code.

May import every room below (experiments, regression, runner, reports, ...), but only inside a command's function: help
loads no torch. Start with ``options`` (each shared option, declared once) and ``output`` (formats, exit codes), then
``run``. ``cli.py`` registers the functions.
"""
