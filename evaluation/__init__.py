"""How good predictions are, in numbers and figures."""
