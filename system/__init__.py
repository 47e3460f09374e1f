"""The machine and the command line: arguments, messages, files, devices, processes."""
