"""Files and folders of images: listing, decoding, cropping, dividing, naming."""
