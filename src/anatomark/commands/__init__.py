"""Commands that put landmarks to use; what concerns models is in ``cli.py``. Only typer is imported here."""
