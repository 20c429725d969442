"""The claims of the other systems of the field, each with the smallest honest experiment."""
