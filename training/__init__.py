"""Features of images, and what is fitted on them."""
