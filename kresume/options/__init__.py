"""The options of a training: their table, their values, and how the command line, YAML files and Python give them."""
