"""Training recipes: how the models that ship with Onlooker were made."""
