"""What is wrong with a data folder and its labels, and the figures that show it."""
