"""The bench, not the product: drawn images, how they look and are described, and the small models pretrained on them."""
