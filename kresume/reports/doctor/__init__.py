"""Examines this machine: what each backend finds, what is missing, how fast pictures come."""
