"""What ``studies/fuzz.py`` is made of: sound files, what is done to them, an independent reading, the process that
tries them."""
