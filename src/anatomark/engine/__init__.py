"""Training, prediction, evaluation: what the commands do, composed of methods, data and files."""
