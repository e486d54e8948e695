"""The command line: the application, and one file for each command."""
