"""Networks, their weights, and files of them."""
