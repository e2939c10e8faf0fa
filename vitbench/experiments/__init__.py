"""ONE model with weights: open it, evaluate it, predict with it, draw its attention, train it, sweep its recipe.

Commands are a thin layer over this room. It may import regression, runner, reports, analysis, training, models, devices
and core. Read ``request.py`` (what a user asks for) and ``open_model.py`` first, then the file of the command; a
training is in ``training/``.
"""
