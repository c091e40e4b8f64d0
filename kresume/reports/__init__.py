"""Shows people finished things: images, lineages, machines."""
