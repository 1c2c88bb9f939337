"""How keys and values lie in a tier of the store: as they are, or in fewer bits."""
