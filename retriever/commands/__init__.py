"""The commands, a file for each group: they read arguments, call public functions and print."""
