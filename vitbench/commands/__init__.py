"""The commands that use trained models, one module each; cli.py registers them."""
