"""One HTML page: ``data.py`` gives its data, ``page.py`` renders it, ``page.js`` and ``charts.js`` draw it."""
